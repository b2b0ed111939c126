"""Where models of Hugging Face's classes keep their MLPs' matrices."""

from typing import TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rome_lens.errors import EditError
from rome_lens.models.kinds import Model
from rome_lens.models.mlp import PLAIN, MlpMatrix, OutputMatrix, find_matrix

EditableModel: TypeAlias = Model | PreTrainedModel

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
"""The module that answers to keys, by Hugging Face's model_type; {} is the layer's number."""

_INPUTS = {
    "c_proj": "c_fc",
    "fc_out": "fc_in",
    "dense_4h_to_h": "dense_h_to_4h",
    "fc2": "fc1",
    "down_proj": "up_proj",
}
"""The module that makes the keys (in a gated MLP, with `gate_proj`), by the name of the one that answers to them."""


def output_matrix_of(model: EditableModel, layer: int, matrix: MlpMatrix = "out") -> OutputMatrix:
    """Finds a matrix of a layer's MLP.

    Raises:
        ValueError: no such layer, or none with a single matrix.
        EditError: a Hugging Face model of a family that is not known here, or one whose matrix is packed.
    """
    if isinstance(model, PreTrainedModel):
        return _in_hugging_face(model, layer, matrix)
    return find_matrix(model, layer, matrix)


def name_of(model: EditableModel) -> str:
    """What the model is called."""
    if isinstance(model, PreTrainedModel):
        return model.name_or_path or type(model).__name__
    return str(model.cfg.model_name)


def _in_hugging_face(model: PreTrainedModel, layer: int, matrix: MlpMatrix) -> OutputMatrix:
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
    if type(module) not in PLAIN or not isinstance(weight, nn.Parameter) or weight.ndim != 2:
        raise EditError(
            f"{path} of {name_of(model)} is a {type(module).__name__}, expected a plain nn.Linear or Conv1D. Load the "
            "model unquantized and without adapters."
        )
    if not torch.is_floating_point(weight):
        raise EditError(f"{path} of {name_of(model)} holds {weight.dtype}, expected floats. Load it unquantized.")
    return OutputMatrix(weight, transposed=type(module) is not Conv1D, module=path)
