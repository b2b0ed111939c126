"""The MLP matrices that edits change, in models of TransformerLens and of Hugging Face."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rome_lens.models.kinds import EditableModel, Model, is_bridge
from rome_lens.models.mlp import MlpMatrix
from rome_lens.models.mlp.huggingface import PLAIN, is_packed, mlp_module
from rome_lens.models.parameters import check_layer, check_normal


@dataclass(frozen=True, eq=False)
class OutputMatrix:
    """A matrix of a layer's MLP, as a rule the output matrix, wherever the model keeps it.

    Attributes:
        parameter: the model's own parameter.
        transposed: whether the parameter is [d_out, d_in].
        module: the dotted name of its module in a Hugging Face model; "" in one of TransformerLens.
    """

    parameter: Tensor
    transposed: bool = False
    module: str = ""

    def __post_init__(self) -> None:
        check_normal([self.parameter])

    @property
    def values(self) -> Float[Tensor, "d_in d_out"]:
        """A view of the entries, without gradient; writing into it changes the model."""
        return self.oriented(self.parameter.detach())

    def oriented(self, values: Float[Tensor, "row column"]) -> Float[Tensor, "_ _"]:
        """A view that turns the parameter's orientation (its gradient's too) into [d_in, d_out], and back."""
        return values.T if self.transposed else values


def find_output_matrix(model: EditableModel, layer: int) -> OutputMatrix:
    """The MLP output matrix that ROME rewrites, as the model's own parameter.

    Raises:
        ValueError: no such layer, or the block has no single MLP output matrix (mixture of experts, attention only);
            and as `check_normal`.
        EditError: a Hugging Face model of a family that is not known here, or one whose matrix is packed.
    """
    if isinstance(model, PreTrainedModel):
        path, module = mlp_module(model, layer)
        return _of_module(module, module.get_parameter("weight"), path)
    check_layer(model, layer)
    mlp = getattr(model.blocks[layer], "mlp", None)
    found = _in_bridge(mlp) if is_bridge(model) else _in_hooked(mlp)
    if found is None or found.values.ndim != 2 or found.values.shape[1] != model.cfg.d_model:
        _refuse_mixture(model, layer)
        _refuse_packed(model, layer, "out")
        raise ValueError(
            f"Layer {layer} of {model.cfg.model_name} has no single MLP output matrix [d_mlp, d_model] to edit (an "
            "attention-only model). Use one with MLPs."
        )
    return found


def find_matrix(model: EditableModel, layer: int, matrix: MlpMatrix) -> OutputMatrix:
    """A matrix of a layer's MLP, as the model's own parameter.

    Raises:
        ValueError: no such layer, the block has no single matrix of this name (no gate, a mixture of experts), or the
            gain of the norm before it is folded into it.
    """
    if matrix == "out":
        return find_output_matrix(model, layer)
    if isinstance(model, PreTrainedModel):
        path, module = mlp_module(model, layer, matrix)
        return _of_module(module, module.get_parameter("weight"), path)
    check_layer(model, layer)
    mlp = getattr(model.blocks[layer], "mlp", None)
    found = _in_bridge(mlp, matrix) if is_bridge(model) else _in_hooked(mlp, matrix)
    if found is None or found.values.ndim != 2 or found.values.shape[0] != model.cfg.d_model:
        _refuse_mixture(model, layer)
        _refuse_packed(model, layer, matrix)
        raise ValueError(
            f"Layer {layer} of {model.cfg.model_name} has no single matrix {matrix!r} [d_model, d_mlp] in its MLP (an "
            "MLP without a gate, or one that keeps both in one matrix). Choose another matrix, such as 'out'."
        )
    if _is_folded(model):
        raise ValueError(
            f"The norms of {model.cfg.model_name} are folded into its MLPs' matrix {matrix!r}, so that a change of it "
            "means something else than in the model as it was trained. Load it with load_model, which folds nothing, "
            "or choose the matrix 'out'."
        )
    return found


def _refuse_mixture(model: Model, layer: int) -> None:
    """Raises ValueError if the model has layers of experts.

    Each expert has keys, and so a covariance C, of its own: Eq. 2 has no one W k* = v* to solve.
    """
    cfg = model.original_model.config.get_text_config() if is_bridge(model) else model.cfg
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    if number := next((count for name in names if (count := getattr(cfg, name, None))), None):
        raise ValueError(
            f"Layer {layer} of {model.cfg.model_name} has no single MLP output matrix: it is of a mixture of experts, "
            f"where a router picks some of {number} for each token, each with keys and matrices of its own. Such a "
            "model can be traced, but not edited. Edit a dense one."
        )


def _refuse_packed(model: Model, layer: int, matrix: MlpMatrix) -> None:
    """Raises ValueError if a matrix is there, but not as plain numbers."""
    mlp = getattr(model.blocks[layer], "mlp", None)
    if is_bridge(model):
        module = getattr(getattr(mlp, matrix, None), "original_component", None)
        packed = type(module).__name__ if is_packed(module) else None
    else:
        weight = getattr(mlp, f"W_{matrix}", None)
        packed = str(weight.dtype) if isinstance(weight, Tensor) and not weight.is_floating_point() else None
    if packed:
        raise ValueError(
            f"The MLP matrix {matrix!r} of layer {layer} of {model.cfg.model_name} is quantized ({packed}). Such "
            "a model can be traced, but its packed weights cannot be edited. Load the original weights, or what "
            "model.dequantize() of Hugging Face's model gives."
        )


def _is_folded(model: Model) -> bool:
    """Whether the norms' gains are in the matrices that read from them."""
    if is_bridge(model):
        return bool(model.compatibility_mode)
    return str(model.cfg.normalization_type).endswith("Pre")


def _in_hooked(mlp: Any, matrix: MlpMatrix = "out") -> OutputMatrix | None:
    weight = getattr(mlp, f"W_{matrix}", None)
    return OutputMatrix(weight) if isinstance(weight, nn.Parameter) else None


def _in_bridge(mlp: Any, matrix: MlpMatrix = "out") -> OutputMatrix | None:
    module: Any = getattr(getattr(mlp, matrix, None), "original_component", None)
    if type(module) not in PLAIN or not module.weight.is_floating_point():
        return None
    return _of_module(module, _read_by(mlp, module.weight) if matrix == "out" else module.weight)


def _of_module(module: nn.Module, weight: Tensor, path: str = "") -> OutputMatrix:
    return OutputMatrix(weight, transposed=type(module) is not Conv1D, module=path)


def _read_by(mlp: Any, parameter: nn.Parameter) -> Tensor:
    """The tensor that the MLP multiplies by: the parameter, or another tensor in the same memory.

    The latter is so in TransformerLens 3, for folded gated MLPs. A deep copy of the model gives the two memory of their
    own; they are then made to share it again.
    """
    read = getattr(mlp, "_processed_W_out", None)
    if read is None:
        return parameter
    if read.data_ptr() != parameter.data_ptr():
        if not torch.equal(read, parameter):
            raise ValueError(
                "The model's MLP reads other weights than its state_dict holds (a state_dict was loaded into a folded "
                "TransformerBridge). Load the weights first, then call enable_compatibility_mode()."
            )
        read = mlp.__dict__["_processed_W_out"] = parameter.detach()
    return read


def output_matrix(model: Model, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """The entries of the MLP output matrix, without gradient: what is written into them is in the model."""
    return find_output_matrix(model, layer).values
