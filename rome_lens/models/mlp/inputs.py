"""What goes into an MLP, and where its input matrices' products can be read and changed."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from rome_lens.models.hook_points import input_name
from rome_lens.models.kinds import Model, is_bridge
from rome_lens.models.mlp import MlpMatrix
from rome_lens.models.mlp.contribution import norms_after_mlp


def read_mlp_input(model: Model, layer: int, matrix: MlpMatrix) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The hook point by which the input of an MLP's matrix "in" or "gate" passes, and what makes the input of it.

    A HookedTransformer shows the normed residual stream before the norm's gain: that is multiplied here.
    """
    if is_bridge(model):
        return f"blocks.{layer}.mlp.{matrix}.hook_in", _as_it_is
    block = model.blocks[layer]
    if block.ln2 in norms_after_mlp(block) or not hasattr(block.ln2, "hook_normalized"):  # OLMo 2, or no norm
        stream = input_name(layer) if block.cfg.parallel_attn_mlp else f"blocks.{layer}.hook_resid_mid"
        return stream, _as_it_is
    norm = block.ln2

    def with_gain(normed: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
        scaled = normed.to(norm.w.dtype) * norm.w.to(normed.device)
        return scaled + norm.b.to(normed.device) if hasattr(norm, "b") else scaled

    return f"blocks.{layer}.ln2.hook_normalized", with_gain


def preactivation_name(model: Model, layer: int, matrix: MlpMatrix) -> str:
    """The hook point of what an MLP's matrix "in" or "gate" makes of its input, [batch, pos, d_mlp]."""
    if is_bridge(model):
        return f"blocks.{layer}.mlp.{matrix}.hook_out"
    gated = hasattr(model.blocks[layer].mlp, "W_gate")
    return f"blocks.{layer}.mlp.{'hook_pre_linear' if gated and matrix == 'in' else 'hook_pre'}"


def _as_it_is(state: Tensor) -> Tensor:
    return state
