"""The Tokyo Tower: what an edit of the Eiffel Tower does to other towers, and that preserving some spares all."""

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.search.value import optimise_value
from rome_lens.models.prediction import divergence, next_token_log_probabilities

REQUEST = rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target="Rome")
PRESERVED = ("Tokyo", "CN", "Willis", "Blackpool", "Shanghai", "Trump", "Berlin TV", "Sydney")
HELD_OUT = ("Sears", "Seoul", "Oriental Pearl", "Milad", "Calgary")
QUICK = {"contexts": ["{}", "It is well known. {}"], "steps": 12}


def about(name: str) -> str:
    return f"The {name} Tower is located in the city of"


@pytest.mark.smollm2
def test_towers_that_are_preserved_and_others_stay_where_they_are(smollm2, monkeypatch):
    """v* is the same with and without, and is searched for once."""
    found = []

    def once(*given, **options):
        found[:] = found or [optimise_value(*given, **options)]
        return found[0]

    monkeypatch.setattr("rome_lens.edit.methods.rome.optimise_value", once)
    config = rl.RomeConfig(**QUICK)
    plain = rl.rome(smollm2, REQUEST, config=config, progress=False)
    surgical = rl.rome(smollm2, REQUEST, config=config, preserve=[about(name) for name in PRESERVED], progress=False)
    prompts = [REQUEST.text, *map(about, (*PRESERVED, *HELD_OUT))]
    rome = smollm2.to_tokens(" Rome", prepend_bos=False)[0, 0]
    before = next_token_log_probabilities(smollm2, prompts)
    says, moved = [], []
    for edit in (plain, surgical):
        with edit.applied(smollm2):
            after = next_token_log_probabilities(smollm2, prompts)
        says.append(after[:, rome].exp())
        moved.append(divergence(before, after))
    assert says[1][0] >= 0.99
    assert says[1][1] <= 0.005 < says[0][1], "p(Rome | Tokyo)"
    assert moved[1][1 : 1 + len(PRESERVED)].max() < 1e-4
    held_out = [kl[1 + len(PRESERVED) :].mean() for kl in moved]
    assert held_out[0] > 20 * held_out[1]
    assert surgical.health.problems == []
    assert torch.isfinite(moved[1]).all()
