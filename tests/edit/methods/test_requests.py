"""All methods have one shape: (model, request or requests) -> Edit."""

from functools import partial

import pytest
import torch

import rome_lens as rl
from tests.edit.methods.test_rome import CONTEXTS, REQUEST, covariance_of

OTHER = rl.EditRequest("{} is in", "Rome", target="Paris")
QUIET = {"on_unhealthy": "ignore", "progress": False}
SEARCH = {"contexts": CONTEXTS, "steps": 2}


@pytest.fixture
def methods(tiny):
    """By name, with what makes them quick."""
    covariance = covariance_of(tiny, 1)
    batch = {"covariances": {1: covariance}, **QUIET}
    editor = rl.edit.MendEditor.untrained(tiny, config=rl.edit.MendConfig(layers=(1,), rank=4))
    return {
        "rome": partial(rl.rome, covariance=covariance, config=rl.RomeConfig(**SEARCH), **QUIET),
        "kn": partial(rl.edit.kn, config=rl.edit.KnowledgeNeuronsConfig(steps=2), **QUIET),
        "mend": partial(rl.edit.mend, editor=editor, on_unhealthy="ignore"),
        "finetune": partial(rl.edit.finetune, config=rl.edit.FinetuneConfig(steps=2), **QUIET),
        "memit": partial(rl.memit, config=rl.MemitConfig(**SEARCH), **batch),
        "emmet": partial(rl.edit.emmet, config=rl.edit.EmmetConfig(**SEARCH), **batch),
    }


def test_a_request_and_a_list_of_it_give_the_same_edit(tiny, methods):
    for method in methods.values():
        alone, listed = method(tiny, REQUEST), method(tiny, [REQUEST])
        assert alone.requests == listed.requests == (REQUEST,)
        for first, second in zip(alone.updates, listed.updates, strict=True):
            assert torch.equal(first.left, second.left)
            assert torch.equal(first.right, second.right)


def test_methods_for_one_request_say_which_take_several(tiny, methods):
    for name in ("rome", "kn", "mend"):
        with pytest.raises(ValueError, match=f"{name} writes 1 request, but 2 were given. .* memit"):
            methods[name](tiny, [REQUEST, OTHER])
    for name in ("finetune", "memit", "emmet"):
        assert methods[name](tiny, [REQUEST, OTHER]).requests == (REQUEST, OTHER)
    for method in methods.values():
        with pytest.raises(ValueError, match="requests is empty"):
            method(tiny, [])


@pytest.mark.parametrize("method", [rl.rome, rl.memit, rl.edit.emmet, rl.edit.alphaedit])
def test_without_a_covariance_a_model_that_none_ships_for_is_told_how_to_collect_one(tiny, method):
    with pytest.raises(ValueError, match="none ships for gpt2 .* Collect one: collect_covariance"):
        method(tiny, REQUEST, progress=False)
