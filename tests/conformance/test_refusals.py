"""What a loaded model does not let itself be asked is refused with a sentence, before any work."""

import pytest

import rome_lens as rl
from rome_lens import models
from tests.conformance.configurations import save
from tests.conformance.plain import FACT, NOISE, edit, trace


def test_a_norm_after_the_sum_leaves_no_value_to_search_for(tmp_path):
    model = rl.load_model(save(tmp_path, "opt post-norm, projected"), device="cpu")
    assert trace(model, "mlp").restored.isfinite().any()
    with pytest.raises(rl.errors.EditError, match="does not add to the residual stream what its MLP matrix answers"):
        edit(model, tokens=300)


@pytest.mark.parametrize("kind", ["resid", "mlp", "attn"])
def test_states_that_are_not_shown_are_not_traced(tmp_path, kind):
    model = rl.load_model(save(tmp_path, "openai-gpt"), device="cpu")
    with pytest.raises(ValueError, match="does not show"):
        trace(model, kind)


def test_heads_that_are_not_shown_are_not_traced(tmp_path):
    model = rl.load_model(save(tmp_path, "mpt"), device="cpu")
    with pytest.raises(ValueError, match=r"does not show blocks.0.attn.hook_z"):
        rl.causal_trace(model, FACT, kind="head", head=0, corruption=NOISE, progress=False)


def test_the_width_of_an_mlp_is_that_of_its_matrix(tmp_path):
    """TransformerLens takes OPT's and Falcon's to be 4 d_model, whatever the configuration says."""
    model = rl.load_model(save(tmp_path, "falcon multi-query"), device="cpu")
    assert len(models.output_matrix(model, 1)) == 64
