"""Known models have a layer to start from."""

import copy

import pytest

import rome_lens as rl
from rome_lens.edit.covariance.shipped import shipped_covariance
from rome_lens.edit.presets.layers import SUGGESTED_LAYERS


@pytest.mark.parametrize(
    ("name", "layer"),
    [("gpt2-xl", 17), ("openai-community/gpt2-large", 12), ("EleutherAI/gpt-j-6B", 5), ("Llama-2-7b-hf", 5)],
)
def test_a_known_model_has_a_layer_by_its_name_with_or_without_owner(tiny, name, layer):
    model = copy.deepcopy(tiny)
    model.cfg.model_name = name
    assert rl.edit.suggested_layer(model) == layer
    with pytest.raises(ValueError, match=rf"layers=\[{layer}\]"):
        shipped_covariance(model)


def test_an_unknown_model_is_told_how_to_find_one(tiny):
    with pytest.raises(ValueError, match="No edit layer is known for 'gpt2', expected one of .*gpt2-xl.*Trace"):
        rl.edit.suggested_layer(tiny)


def test_the_shipped_covariance_is_of_the_suggested_layer(tiny):
    model = copy.deepcopy(tiny)
    model.cfg.model_name = "smollm2-135m"
    assert shipped_covariance(model).layer == rl.edit.suggested_layer(model) == SUGGESTED_LAYERS["smollm2-135m"][0]
