"""Quantized models: refused at loading with the way in; where one is wrapped already, traced and not edited.

The libraries need a GPU or kernels of their own. So stand-ins keep their weights as these do: 8-bit integers in a
parameter (bitsandbytes), packed buffers (GPTQ, AWQ), a tensor class (torchao), and torch's own dynamic quantization.
"""

import pytest
import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import rome_lens as rl
from rome_lens.errors import EditError, FormatError
from tests.conformance.plain import LAYER, REQUEST, plain_trace, trace
from tests.tiny import CORPUS


class Linear8bitLt(nn.Linear):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.scale = linear.weight.detach().abs().amax(1) / 127
        rounded = (linear.weight.detach() / self.scale[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.float() * self.scale[:, None]).T


class QuantLinear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", (linear.weight.detach() * 50).round().to(torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.qweight.float() / 50).T


class AffineQuantizedTensor(Tensor):
    """Says that it is float32."""


def of_tensor_class(linear: nn.Linear) -> nn.Linear:
    made = nn.Linear(linear.in_features, linear.out_features, bias=False)
    made.weight = nn.Parameter(linear.weight.detach().as_subclass(AffineQuantizedTensor))
    return made


PACKED = {"Linear8bitLt": Linear8bitLt, "QuantLinear": QuantLinear, "Linear": of_tensor_class}


@pytest.fixture
def hugging_face(tiny_folder):
    """Makes a tiny Llama whose MLPs' matrices are packed in a way."""

    def make(name: str):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32).eval()
        if name == "dynamic":
            return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        for block in model.model.layers:
            for matrix in ("up_proj", "down_proj"):
                setattr(block.mlp, matrix, PACKED[name](getattr(block.mlp, matrix)))
        return model

    return make


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", [*PACKED, "dynamic"])
def test_packed_weights_in_memory_are_refused_with_the_way_in(tiny_folder, hugging_face, name):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("llama"))
    kind = "Linear" if name == "dynamic" else name  # torch's class is called so
    with pytest.raises(FormatError, match=rf"is quantized \({kind}\).* Load the original weights, or save what"):
        rl.load_model(hugging_face(name), tokenizer=tokenizer)


def wrapped(packed, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = TransformerBridge.boot_transformers(str(folder), hf_model=packed, tokenizer=tokenizer, device="cpu")
    model.cfg.default_prepend_bos = False
    return model


def test_a_wrapped_model_is_traced(tiny_folder, hugging_face):
    model = wrapped(hugging_face("Linear8bitLt"), tiny_folder("llama"))
    found = trace(model, "mlp")
    for (position, layer), expected in plain_trace(model, found).items():
        assert found.restored[position, layer].item() == pytest.approx(expected, abs=2e-5), (position, layer)


@pytest.mark.parametrize("name", ["Linear8bitLt", "QuantLinear"])
def test_a_wrapped_model_is_not_edited(tiny_folder, hugging_face, name):
    model = wrapped(hugging_face(name), tiny_folder("llama"))
    made = rl.KeyCovariance.from_matrix(torch.eye(64), layer=LAYER, tokens=1000)
    refused = rf"layer {LAYER} of .* is quantized \({name}\).* Load the original weights"
    for edit in (
        lambda: rl.rome(model, REQUEST, covariance=made, config=rl.RomeConfig(layer=LAYER)),
        lambda: rl.memit(model, REQUEST, covariances={LAYER: made}, config=rl.MemitConfig(layers=(LAYER,))),
        lambda: rl.edit.finetune(model, REQUEST, config=rl.edit.FinetuneConfig(layers=(LAYER,))),
        lambda: rl.edit.ultraedit(model, REQUEST, config=rl.edit.UltraEditConfig(layers={"in": (LAYER,)})),
        lambda: rl.collect_covariance(model, [LAYER], texts=CORPUS, tokens=10),
    ):
        with pytest.raises(ValueError, match=refused):
            edit()


@pytest.fixture(scope="module")
def edited(tiny_folder):
    config = rl.edit.FinetuneConfig(layers=(LAYER,), steps=1)
    model = rl.load_model(tiny_folder("llama"), device="cpu")
    return rl.edit.finetune(model, REQUEST, config=config, on_unhealthy="ignore", progress=False)


@pytest.mark.parametrize("name", PACKED)
def test_an_edit_is_not_added_to_packed_weights(hugging_face, edited, name):
    with pytest.raises(EditError, match=r"(expected a plain nn.Linear|expected plain floats).* unquantized"):
        edited.apply(hugging_face(name))
