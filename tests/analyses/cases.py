"""What the tests of analyses share: facts that a tiny model predicts, and the check of what an analysis leaves."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import rome_lens as rl
from analyses.common.options import predicted
from rome_lens.locate.prompt import prepare_prompt
from rome_lens.models import Model
from tests.evaluate.test_sequence import noise

SUBJECTS = ("The Eiffel Tower", "The Space Needle", "The Colosseum", "Vinson Massif", "Porsche 911", "Beats Music")
PROMPTS = ("{} is located in the city of", "{} is owned by", "{} is in the", "The mother tongue of {} is")
TRACE = ["--samples", "1"]


@cache
def known(model: Model) -> list[rl.Fact]:
    """Facts whose answer is what the model says by itself; answers that are no text of their own are left out."""
    asked = [rl.Fact(prompt, subject) for prompt in PROMPTS for subject in SUBJECTS]
    said = [model.tokenizer.decode([prepare_prompt(model, fact).predicted]).strip() for fact in asked]
    facts = [replace(fact, answer=answer) for fact, answer in zip(asked, said, strict=True) if answer]
    facts = [facts[number] for number in predicted(model, facts, 3)]
    assert len(facts) == 3
    return facts


def whole(out: Path, *names: str) -> dict:
    """Checks that the figures are there in all forms, and gives the manifest."""
    for name in names:
        assert [(out / f"{name}.{form}").stat().st_size > 0 for form in ("html", "pdf", "svg", "png")] == [True] * 4
    made_by = json.loads((out / "manifest.json").read_text())
    assert made_by["model"]["architecture"]
    assert made_by["versions"]["rome_lens"] == rl.__version__
    return made_by


def refused(main: Callable[[Sequence[str]], None], arguments: Sequence[str], model: Model) -> None:
    """Checks that what was begun with a model is not gone on with by one of other weights."""
    request = rl.EditRequest("{} is in", "The Eiffel Tower", target="Rome")
    with noise(model, request).applied(model), pytest.raises(rl.errors.FormatError, match="was begun with .*weights"):
        main(arguments)
