"""What an MLP answers to a key, and what its block then adds to the residual stream."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from rome_lens.models.kinds import Model
from rome_lens.models.mlp.matrix import output_matrix


def mlp_output(model: Model, layer: int, key: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_model"]:
    """The output of the MLP of `layer` for a key, in float32: key @ W_out + b_out."""
    weight, bias = output_matrix(model, layer), model.blocks[layer].mlp.b_out
    answer = key.float().to(weight.device) @ weight.float()
    return (answer if bias is None else answer + bias.detach().float()).to(key.device)


def mlp_contribution(model: Model, layer: int, output: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    """What the block adds to the residual stream for this MLP output.

    That is the output itself, or the output normed (Gemma 2, OLMo 2) or multiplied by a number (Granite).
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
    """The change of what the block adds to the residual stream when its MLP's output changes by `change`."""
    before = mlp_contribution(model, layer, output)
    return mlp_contribution(model, layer, output + change) - before


def norms_mlp_output(model: Model, layer: int) -> bool:
    """Whether the block norms or scales its MLP's output, so that a change of it is not simply added."""
    block = model.blocks[layer]
    return bool(norms_after_mlp(block)) or _multiplier(block) != 1


def norms_after_mlp(block: Any) -> list[nn.Module]:
    """The norms that a block applies to its MLP's output, in order (Gemma 2, OLMo 2)."""
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    if hasattr(block, "original_component"):  # a TransformerBridge's block; its norms without their hook points
        after = ["ln2_post", *(["ln2"] if block.mlp_reads_resid_directly else [])]
        return [block.submodules[name].original_component for name in after if name in block.submodules]
    norms = [block.ln2_post] if block.cfg.use_normalization_before_and_after else []
    return norms + ([block.ln2] if block.cfg.original_architecture in POST_NORM_ARCHITECTURES else [])


def _multiplier(block: Any) -> float:
    """The number that a block multiplies its MLP's output by."""
    return getattr(block, "residual_contribution_scale", 1.0)
