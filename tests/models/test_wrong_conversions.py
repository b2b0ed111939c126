"""A wrong conversion is told from a right one in half precision too, where roundings are as large as its fault."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import rome_lens as rl
from rome_lens.models.kinds import HAS_HOOKED
from rome_lens.models.loading import converting, widened
from rome_lens.models.loading.comparing import difference, reference
from rome_lens.models.loading.widened import in_float32
from tests.tiny import CONFIGS

pytestmark = pytest.mark.skipif(not HAS_HOOKED, reason="TransformerLens 4 has the Bridge alone")


def hugging_face(family: str, dtype: torch.dtype):
    """A model with weights as small as Hugging Face makes them, so that attention hardly matters."""
    config = CONFIGS[family]()
    config.initializer_range = 0.05
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        model.config.architectures = [type(model).__name__]
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, 0.0, 0.05)
    for parameter in model.parameters():  # not the buffers: a rotation's frequencies stay in float32
        parameter.data = parameter.data.to(dtype)
    return model


def other_base(model) -> None:
    model.cfg.rotary_base = 8000.0
    for block in model.blocks:
        block.attn._extend_rotary_embeddings(len(block.attn.rotary_sin))


def no_window(model) -> None:
    for block in model.blocks:
        block.attn.attn_type = "global"


def no_biases(model) -> None:
    for block in model.blocks:
        block.attn.b_K.data.zero_()
        block.attn.b_Q.data.zero_()


def other_epsilon(model) -> None:
    for block in model.blocks:
        block.ln1.eps *= 100


WRONG = {
    "base of the rotation": ("llama", other_base),
    "window": ("mistral", no_window),
    "biases of queries and keys": ("qwen2", no_biases),
    "epsilon": ("neox", other_epsilon),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_conversion_is_told_in_every_dtype(wrong, dtype):
    family, spoil = WRONG[wrong]
    hf_model = hugging_face(family, dtype)
    with torch.no_grad():
        expected = reference(hf_model)
        model = converting._of_views(hf_model, dtype)
        assert difference(model, expected).is_small
        spoil(model)
        found = difference(model, expected)
    assert not found.is_small, found


def test_weights_and_dtypes_are_as_they_were_after_an_error_too():
    hf_model = hugging_face("llama", torch.bfloat16)
    before = {name: (value.data_ptr(), value.dtype) for name, value in hf_model.state_dict().items()}
    seen = []
    hf_model.model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(_[2].dtype) or 1 / 0)
    with pytest.raises(ZeroDivisionError), in_float32(hf_model):
        hf_model(torch.tensor([[1, 2]]))
    assert seen == [torch.float32]
    assert {name: (value.data_ptr(), value.dtype) for name, value in hf_model.state_dict().items()} == before


@pytest.mark.parametrize("kept_as", ["parameter", "buffer"])
def test_all_that_a_linear_layer_adds_is_widened_and_put_back(kept_as):
    """TransformerLens 4 keeps the unembedding's bias as a buffer."""
    linear = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    if kept_as == "buffer":
        bias = linear.bias.detach()
        del linear.bias
        linear.register_buffer("bias", bias)
    before = [value.clone() for value in linear.state_dict().values()]
    with in_float32(torch.nn.ModuleDict({"unembed": linear})):
        assert linear(torch.ones(1, 3)).dtype == torch.float32
    after = list(linear.state_dict().values())
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@torch.no_grad()
def test_a_vocabulary_in_parts_gives_what_a_float32_model_gives(family, monkeypatch):
    """Gemma scales its embeddings in the dtype of its table."""
    row, half = torch.tensor([[5, 9, 5, 200, 17]]), hugging_face(family, torch.bfloat16).eval()
    expected = copy.deepcopy(half).float()(row).logits
    monkeypatch.setattr(widened, "_LARGE", 0)
    monkeypatch.setattr(widened, "_ROWS", 50)
    held = []
    half.get_input_embeddings().register_forward_hook(lambda module, *_: held.append(module.weight.shape[0]))
    half.get_output_embeddings().register_forward_hook(lambda module, *_: held.append(module.weight.dtype))
    with in_float32(half):
        found = half(row).logits
        assert held == [4, torch.bfloat16]  # 4 rows of the table; the unembedding as it is
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert half(row).logits.dtype == torch.bfloat16


def test_both_classes_are_compared_with_a_vocabulary_in_parts(tiny_folder, monkeypatch):
    monkeypatch.setattr(widened, "_LARGE", 0)
    monkeypatch.setattr(widened, "_ROWS", 50)
    for family in ("gpt2", "gemma2"):  # the second is a Bridge
        assert rl.load_model(tiny_folder(family), device="cpu", dtype="bfloat16").loaded_as
