"""Where models of Hugging Face's classes keep their MLPs' matrices."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from rome_lens.errors import EditError
from rome_lens.models.kinds import name_of
from rome_lens.models.mlp import MlpMatrix

PLAIN = (nn.Linear, FalconLinear, Conv1D)
"""Modules that multiply by their weight as it is. Their subclasses (quantized, adapted) do not."""

_MODULES = {
    "transformer.h.{}.mlp.c_proj": ("gpt2", "gpt_bigcode", "gpt_neo"),
    "transformer.h.{}.mlp.fc_out": ("codegen", "gptj"),
    "transformer.h.{}.mlp.dense_4h_to_h": ("bloom", "falcon"),
    "transformer.blocks.{}.ffn.down_proj": ("mpt",),
    "gpt_neox.layers.{}.mlp.dense_4h_to_h": ("gpt_neox",),
    "model.decoder.layers.{}.fc2": ("opt",),
    "model.layers.{}.fc2": ("xglm",),
    "model.layers.{}.mlp.fc2": ("phi",),
    "model.layers.{}.mlp.c_proj": ("starcoder2",),
    "model.layers.{}.mlp.down_proj": (
        *("apertus", "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm"),
        *("glm4", "granite", "hunyuan_v1_dense", "llama", "mistral", "nemotron", "olmo", "olmo2", "olmo3", "phi3"),
        *("qwen2", "qwen3", "seed_oss", "smollm3", "stablelm"),
    ),
}
MODULE_OF = {model_type: path for path, model_types in _MODULES.items() for model_type in model_types}
"""The module with the MLP output matrix, by Hugging Face's model_type; {} is the layer's number."""

_INPUTS = {
    "c_proj": "c_fc",
    "fc_out": "fc_in",
    "dense_4h_to_h": "dense_h_to_4h",
    "fc2": "fc1",
    "down_proj": "up_proj",
}
"""The module with W_in, by the last name of the one with W_out; W_gate is in `gate_proj`."""


def place_of_module(path: str) -> tuple[int, MlpMatrix]:
    """The layer and matrix of an MLP's module, from its dotted name. Raises ValueError if it is none known here."""
    for known in _MODULES:
        parent, _, last = known.rpartition(".")
        names: dict[str, MlpMatrix] = {last: "out", _INPUTS[last]: "in", "gate_proj": "gate"}
        found = re.fullmatch(re.escape(parent).replace(r"\{\}", r"(\d+)") + r"\.(\w+)", path)
        if found and found[2] in names:
            return int(found[1]), names[found[2]]
    raise ValueError(f"{path!r} is no matrix of an MLP known here, expected {', '.join(_MODULES)} or their inputs")


_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def is_packed(module: Any) -> bool:
    """Whether a module multiplies by a matrix that it does not keep as plain numbers (quantized)."""
    if not hasattr(module, "in_features"):
        return False
    return not _is_plain(getattr(module, "weight", None))


def _is_plain(weight: Any) -> bool:
    """Whether it is a matrix of floats, not of another class or a method (torch's dynamically quantized linears)."""
    return isinstance(weight, Tensor) and type(weight.data) is Tensor and weight.dtype in _FLOATS


def mlp_module(model: PreTrainedModel, layer: int, matrix: MlpMatrix = "out") -> tuple[str, nn.Module]:
    """The dotted name of the module with a matrix of a layer's MLP, and the module."""
    kind = model.config.model_type
    if kind not in MODULE_OF:
        raise EditError(
            f"{name_of(model)} is of the type {kind!r}, whose MLP output matrices are not known here (known: "
            f"{', '.join(sorted(MODULE_OF))}). Apply the edit to a model of TransformerLens, or name the module in "
            "MODULE_OF."
        )
    layers = model.config.num_hidden_layers
    if not 0 <= layer < layers:
        raise ValueError(f"layer is {layer}, but {name_of(model)} has layers 0 to {layers - 1}.")
    parent, _, name = MODULE_OF[kind].format(layer).rpartition(".")
    name = {"in": _INPUTS[name], "gate": "gate_proj", "out": name}[matrix]
    path, module = f"{parent}.{name}", getattr(model.get_submodule(parent), name, None)
    weight = getattr(module, "weight", None)
    if (
        not isinstance(module, nn.Module)
        or type(module) not in PLAIN
        or not isinstance(weight, nn.Parameter)
        or weight.ndim != 2
    ):
        raise EditError(
            f"{path} of {name_of(model)} is a {type(module).__name__}, expected a plain nn.Linear or Conv1D. Load the "
            "model unquantized and without adapters."
        )
    if not _is_plain(weight):
        held = f"{type(weight.data).__name__} of {weight.dtype}"
        raise EditError(f"{path} of {name_of(model)} holds a {held}, expected plain floats. Load it unquantized.")
    return path, module
