"""The MLP output matrices, which edits change, and what they answer to keys."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from rome_lens.models.kinds import Model, is_bridge
from rome_lens.models.parameters import check_layer

MlpMatrix = Literal["in", "gate", "out"]
"""A matrix of an MLP: W_in (up_proj), W_gate (gate_proj, of gated MLPs), W_out (down_proj)."""

PLAIN = (nn.Linear, FalconLinear, Conv1D)
"""Modules that multiply with their weight as it is. Their subclasses (quantized, adapted) do not."""


@dataclass(frozen=True, eq=False)
class OutputMatrix:
    """A matrix of a layer's MLP, wherever it is kept: as a rule, the output matrix.

    Attributes:
        parameter: the model's own parameter.
        transposed: whether that is [d_out, d_in].
        module: the dotted name of its module in a Hugging Face model; "" elsewhere.
    """

    parameter: Tensor
    transposed: bool = False
    module: str = ""

    @property
    def values(self) -> Float[Tensor, "d_in d_out"]:
        """A view of the entries, without gradient: what is written into it is in the model."""
        return self.oriented(self.parameter.detach())

    def oriented(self, values: Float[Tensor, "row column"]) -> Float[Tensor, "_ _"]:
        """A view: [d_in, d_out] of what is kept as the parameter is (its gradient), and the other way round."""
        return values.T if self.transposed else values


def find_output_matrix(model: Model, layer: int) -> OutputMatrix:
    """Where the MLP output matrix that ROME rewrites is kept: a parameter itself, not a stacked copy.

    Raises:
        ValueError: no such layer, or the block has no single MLP output matrix (mixture of experts, attention only).
    """
    check_layer(model, layer)
    mlp = getattr(model.blocks[layer], "mlp", None)
    found = _in_bridge(mlp) if is_bridge(model) else _in_hooked(mlp)
    if found is None or found.values.ndim != 2 or found.values.shape[1] != model.cfg.d_model:
        raise ValueError(
            f"Layer {layer} of {model.cfg.model_name} has no single MLP output matrix [d_mlp, d_model] to edit "
            "(a mixture of experts, an attention-only or a quantized model). Use a dense, unquantized model."
        )
    return found


def find_matrix(model: Model, layer: int, matrix: MlpMatrix) -> OutputMatrix:
    """Where a matrix of a layer's MLP is kept: a parameter itself, not a stacked copy.

    Raises:
        ValueError: no such layer, the block has no single matrix of this name (no gate, a mixture of experts), or it
            holds the gain of the norm before it.
    """
    if matrix == "out":
        return find_output_matrix(model, layer)
    check_layer(model, layer)
    mlp = getattr(model.blocks[layer], "mlp", None)
    found = _in_bridge(mlp, matrix) if is_bridge(model) else _in_hooked(mlp, matrix)
    if found is None or found.values.ndim != 2 or found.values.shape[0] != model.cfg.d_model:
        raise ValueError(
            f"Layer {layer} of {model.cfg.model_name} has no single matrix {matrix!r} [d_model, d_mlp] in its MLP (an "
            "MLP without a gate, one that keeps both in one matrix, a mixture of experts or a quantized model). "
            "Choose another matrix, such as 'out'."
        )
    if _is_folded(model):
        raise ValueError(
            f"The norms of {model.cfg.model_name} are folded into its MLPs' matrix {matrix!r}, so that a change of it "
            "means something else than in the model as it was trained. Load it with load_model, which folds nothing, "
            "or choose the matrix 'out'."
        )
    return found


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
    weight = _read_by(mlp, module.weight) if matrix == "out" else module.weight
    return OutputMatrix(weight, transposed=type(module) is not Conv1D)


def _read_by(mlp: Any, parameter: nn.Parameter) -> Tensor:
    """What the MLP multiplies with: the parameter, or (version 3, folded, gated) another tensor in the same memory.

    A deep copy of the model has the two in memory of their own: they are put together again.
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
    """The entries of the MLP output matrix, without gradient: what is written into them is in the model.

    Raises:
        ValueError: as `find_output_matrix`.
    """
    return find_output_matrix(model, layer).values


def key_width(model: Model, layer: int) -> int:
    """d_mlp of a layer: how many rows its MLP output matrix has, whatever the configuration says.

    Raises:
        ValueError: as `find_output_matrix`.
    """
    return len(output_matrix(model, layer))


def output_matrix_name(model: Model, layer: int) -> str:
    """The parameter's name among the model's `named_parameters()`."""
    place = output_matrix(model, layer).data_ptr()
    return next(name for name, parameter in model.named_parameters() if parameter.data_ptr() == place)


def mlp_output(model: Model, layer: int, key: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_model"]:
    """What the MLP of `layer` answers to a key, in float32: key @ W_out + b_out."""
    weight, bias = output_matrix(model, layer), model.blocks[layer].mlp.b_out
    answer = key.float().to(weight.device) @ weight.float()
    return (answer if bias is None else answer + bias.detach().float()).to(key.device)


def mlp_contribution(model: Model, layer: int, output: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    """What the block adds to the residual stream for an MLP output: the output itself, normed (Gemma 2, OLMo 2), or
    multiplied by a number (Granite).
    """
    states = output[(None,) * max(0, 3 - output.ndim)]  # norms take [batch, pos, d_model]
    states = states.to(output_matrix(model, layer).device)
    for post_norm in norms_after_mlp(model.blocks[layer]):
        states = post_norm(states)
    states = states * _multiplier(model.blocks[layer])
    return states.reshape(output.shape).to(output.device)


def contribution_change(
    model: Model,
    layer: int,
    output: Float[Tensor, "*n d_model"],
    change: Float[Tensor, "*n d_model"],
) -> Float[Tensor, "*n d_model"]:
    """How much more the block adds to the residual stream if its MLP puts out `output + change`, not `output`."""
    before = mlp_contribution(model, layer, output)
    return mlp_contribution(model, layer, output + change) - before


def norms_mlp_output(model: Model, layer: int) -> bool:
    """Whether the block norms or scales what its MLP puts out, so that a change of it is not simply added."""
    block = model.blocks[layer]
    return bool(norms_after_mlp(block)) or _multiplier(block) != 1


def norms_after_mlp(block: Any) -> list[nn.Module]:
    """The norms that a block puts its MLP's output through, in order (Gemma 2, OLMo 2)."""
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    if hasattr(block, "original_component"):  # a TransformerBridge's; its norms without their hook points
        after = ["ln2_post", *(["ln2"] if block.mlp_reads_resid_directly else [])]
        return [block.submodules[name].original_component for name in after if name in block.submodules]
    norms = [block.ln2_post] if block.cfg.use_normalization_before_and_after else []
    return norms + ([block.ln2] if block.cfg.original_architecture in POST_NORM_ARCHITECTURES else [])


def _multiplier(block: Any) -> float:
    """What a block multiplies its MLP's output by."""
    return getattr(block, "residual_contribution_scale", 1.0)
