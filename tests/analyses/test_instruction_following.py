"""Win rates are the judge's, of what the models write, and a run goes on where it was."""

import json
from contextlib import nullcontext
from functools import partial

import pandas as pd
import pytest

import rome_lens as rl
from analyses import instruction_following
from analyses.common.methods import FINETUNING
from tests.analyses.cases import refused, whole

ASKED = [{"instruction": f"Name {what}.", "output": "Rome", "generator": "x"} for what in ("a city", "a colour")]


def test_outputs_are_those_of_the_edited_model_and_win_rates_the_judges(given, tiny, tmp_path, monkeypatch):
    path, out = tmp_path / "outputs.json", tmp_path / "out"
    path.write_text(json.dumps(ASKED))
    arguments = [*given["plain"], "--count", "2", "--methods", "ft", "--instructions", str(path), "--new-tokens", "5"]
    instruction_following.main(arguments)
    outputs = pd.read_csv(out / "outputs.csv", keep_default_na=False).set_index(["method", "case_id"])["output"]
    prompts = [each["instruction"] for each in ASKED]
    records = rl.load_counterfact(tmp_path / "records.json")[:2]
    method = partial(rl.edit.finetune, config=FINETUNING["ft"], on_unhealthy="ignore", progress=False)
    for name, edit in (("base", None), ("ft", rl.edit_sequence(tiny, records, method, progress=False).edit)):
        with edit.applied(tiny) if edit else nullcontext():
            answers = rl.evaluate.generate_answers(tiny, prompts, new_tokens=5, stops=())
        assert list(outputs[name]) == [answer.text for answer in answers]
    judge = rl.evaluate.Preference(tiny, name="smollm2-135m")
    table = pd.read_csv(out / "table.csv").set_index("method")
    for method, metric, other in (
        ("base", "win_rate_reference", "reference"),
        ("ft", "win_rate_reference", "reference"),
        ("ft", "win_rate_unedited", "base"),
    ):
        wins = [judge(prompt, outputs[method, i], outputs[other, i]) for i, prompt in enumerate(prompts)]
        assert table.loc[method, metric] == sum(wins) / 2
    assert set(whole(out)["inputs"]) == {"outputs.json", "records.json"}
    monkeypatch.setattr(instruction_following, "answers", lambda *_: pytest.fail("This was done already."))
    instruction_following.main(arguments)
    refused(instruction_following.main, arguments, tiny)
    monkeypatch.setitem(FINETUNING, "ft", rl.edit.FinetuneConfig(steps=1))
    with pytest.raises(rl.errors.FormatError, match="was begun with .*method ft"):
        instruction_following.main(arguments)
    path.write_text(json.dumps([*ASKED, {"instruction": "Name a fruit."}]))
    with pytest.raises(rl.errors.FormatError, match="Record 2 of .* lacks the field 'output'"):
        instruction_following.main(arguments)
