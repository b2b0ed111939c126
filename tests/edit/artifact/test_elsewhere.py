"""Edits carried to where they were not made: Hugging Face's classes, folded weights, other dtypes."""

import copy
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import rome_lens as rl
from rome_lens.models import find_output_matrix
from rome_lens.models.mlp.huggingface import MODULE_OF
from tests.edit.artifact.test_edit import made_on, made_up

FAMILIES = ["gpt2", "gptj", "neox", "llama", "llama-gqa"]
every_family = pytest.mark.parametrize("family", FAMILIES)


def unlike(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])]


# ----------------------------------------------------------------------------------------------------- Hugging Face


@every_family
@torch.no_grad()
def test_a_hugging_face_model_is_edited_as_the_hooked_one_is(
    tiny_model, hugging_face, weights_of, recwarn, tokens, family
):
    """The same logits to 1e-4 and no warning, one matrix changed for each layer, and all back bit for bit."""
    model, hf_model = tiny_model(family), hugging_face(family)
    edit, before = made_on(model), weights_of(hf_model)
    with edit.applied(model):
        edited = model(tokens)
    with edit.applied(hf_model, strict=True):
        torch.testing.assert_close(hf_model(tokens).logits, edited, atol=1e-4, rtol=0)
        (changed,) = unlike(hf_model, before)
        assert changed == MODULE_OF[hf_model.config.model_type].format(1) + ".weight"
    assert unlike(hf_model, before) == []
    assert not [warning for warning in recwarn if issubclass(warning.category, rl.errors.EditWarning)]


@pytest.mark.parametrize("family", ["gpt2", "llama-gqa"])
@torch.no_grad()
def test_an_edited_model_that_transformers_saves_is_loaded_with_the_same_logits(
    tiny_model, tiny_folder, hugging_face, tokens, tmp_path, family
):
    """For whoever has neither this package nor the edit: plain transformers, and a folder for `load_model`."""
    model, hf_model = tiny_model(family), hugging_face(family)
    edit = made_on(model)
    with edit.applied(model):
        expected = model(tokens)
    edit.apply(hf_model)
    hf_model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens).logits, hf_model(tokens).logits)
    AutoTokenizer.from_pretrained(tiny_folder(family)).save_pretrained(tmp_path)
    torch.testing.assert_close(rl.load_model(tmp_path, device="cpu")(tokens), expected, atol=1e-4, rtol=0)


def test_a_hugging_face_models_weights_are_back_after_an_exception_and_by_the_handle(hugging_face, weights_of, tiny):
    hf_model, edit = hugging_face("gpt2"), made_up(tiny, layers=(0, 2))
    before = weights_of(hf_model)
    with pytest.raises(ZeroDivisionError), edit.applied(hf_model):
        assert len(unlike(hf_model, before)) == 2
        raise ZeroDivisionError
    assert unlike(hf_model, before) == []
    handle = edit.apply(hf_model)
    with made_up(tiny, layers=(2,), seed=1).applied(hf_model):
        handle.revert()
        assert len(unlike(hf_model, before)) == 1
    assert unlike(hf_model, before) == []


def test_edits_that_do_not_fit_a_hugging_face_model_are_refused(hugging_face, weights_of, tiny, tiny_model):
    hf_model = hugging_face("gpt2")
    before = weights_of(hf_model)
    with pytest.raises(
        rl.errors.EditError, match=r"matrices of the shape \(64, 32\), but layer 1 of .* has \(128, 32\)"
    ):
        made_up(tiny_model("llama")).apply(hf_model)
    with pytest.raises(ValueError, match="layer is 7, but .* has layers 0 to 2"):
        made_up(tiny, layers=(7,)).apply(hf_model)
    with (
        pytest.warns(rl.errors.EditWarning, match="layer 1 was"),
        pytest.raises(rl.errors.EditError, match="of the shape"),
    ):
        made_on(tiny_model("neox")).apply(hf_model)
    assert unlike(hf_model, before) == []


def test_unknown_families_and_packed_matrices_are_refused(hugging_face, tiny):
    unknown = hugging_face("gpt2")
    unknown.config.model_type = "mamba"
    with pytest.raises(rl.errors.EditError, match=r"of the type 'mamba', .* \(known: apertus, arcee, bloom, .*gpt2"):
        made_up(tiny).apply(unknown)
    packed = hugging_face("llama")
    packed.model.layers[1].mlp.down_proj = torch.nn.Sequential(packed.model.layers[1].mlp.down_proj)
    with pytest.raises(
        rl.errors.EditError, match=r"model.layers.1.mlp.down_proj of .* is a Sequential, expected a plain"
    ):
        find_output_matrix(packed, 1)


@pytest.mark.parametrize("model_type", sorted(MODULE_OF))
def test_every_known_family_has_its_matrix_where_the_table_says(model_type):
    """Built by transformers itself, with unlike widths inside and outside of the MLP."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
    widths = {"intermediate_size": 96, "n_inner": 96, "ffn_dim": 96, "word_embed_proj_dim": 32, "rotary_dim": 4}
    options = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "head_dim": 8}
    if model_type == "gpt_neo":
        options |= {"attention_types": [[["global"], 2]]}
    if model_type == "falcon":
        options.pop("head_dim")  # it computes that
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, **widths, **options))
    d_mlp = 128 if model_type in ("bloom", "falcon", "mpt") else 96  # these name it otherwise
    matrix = find_output_matrix(model, 1)
    assert matrix.values.shape == (d_mlp, 32)
    assert matrix.parameter is dict(model.named_parameters())[matrix.module + ".weight"]


# ------------------------------------------------------------------------------------------------ folding and dtypes


@pytest.mark.hooked
@every_family
@torch.no_grad()
def test_an_edit_does_the_same_on_folded_and_centred_weights(tiny_model, tokens, family):
    """A norm follows every read of the residual stream and takes out what centring takes out: log-probabilities agree.

    The matrix itself differs where it was centred, of which the edit warns.
    """
    model = tiny_model(family)
    edit = made_on(model)
    folded = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        folded.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    assert "Pre" in folded.cfg.normalization_type
    centred = not torch.equal(folded.blocks[1].mlp.W_out, model.blocks[1].mlp.W_out)
    assert centred == (not family.startswith("llama"))
    with edit.applied(model):
        expected = model(tokens).log_softmax(-1)
    if centred:
        with pytest.warns(rl.errors.EditWarning, match="computed for other weights: layer 1"), edit.applied(folded):
            found = folded(tokens).log_softmax(-1)
        with pytest.warns(rl.errors.EditWarning, match="computed for other weights: layer 1"):
            hooks = edit.hooks(folded)
    else:
        with edit.applied(folded, strict=True):
            found = folded(tokens).log_softmax(-1)
        hooks = edit.hooks(folded)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    hooked = folded.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(-1)
    torch.testing.assert_close(hooked, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_an_edit_of_a_float32_model_is_rounded_once_on_a_half_precision_copy(
    tiny_model, tiny_folder, hugging_face, tokens, dtype
):
    """In the hooked model and in Hugging Face's, which then hold the same numbers; warned of, and reverted exactly."""
    model = tiny_model("llama")
    edit = made_on(model)
    half = rl.load_model(str(tiny_folder("llama")), device="cpu", dtype=dtype)
    hf_half = hugging_face("llama", dtype=dtype)
    update, before = edit.updates[0], half.blocks[1].mlp.W_out.clone()
    with pytest.warns(rl.errors.EditWarning, match="Another model, dtype"):
        handles = edit.apply(half), edit.apply(hf_half)
    try:
        assert torch.equal(half.blocks[1].mlp.W_out, (before.float() + update.left @ update.right).to(dtype))
        assert torch.equal(hf_half.model.layers[1].mlp.down_proj.weight.T, half.blocks[1].mlp.W_out)
        found = half(tokens).float()
    finally:
        for handle in handles:
            handle.revert()
    with edit.applied(model):
        expected = model(tokens)
    assert (found - expected).norm() < 8 * torch.finfo(dtype).eps * expected.norm()
    assert torch.equal(half.blocks[1].mlp.W_out, before)


def test_an_edit_that_overflows_half_precision_only_is_refused_there(tiny, tiny_folder):
    half = rl.load_model(str(tiny_folder("gpt2")), device="cpu", dtype=torch.float16)
    edit = made_up(tiny, scale=1e5)
    before = half.blocks[1].mlp.W_out.clone()
    with pytest.raises(rl.errors.EditError, match="layer 1 infinite or NaN"):
        edit.apply(half)
    assert torch.equal(half.blocks[1].mlp.W_out, before)
    edit.apply(tiny).revert()
