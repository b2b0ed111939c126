"""The memory order that a model's matrices are kept in."""

from torch import Tensor

from rome_lens.checking import checked
from rome_lens.models.kinds import Model, is_bridge


@checked
def optimize_layout(model: Model) -> Model:
    """Stores the weights in the memory order in which HookedTransformer reads them, and returns the same model.

    HookedTransformer copies W_in, W_gate, W_out (gated MLPs), W_U and the attention matrices into another memory order
    at every call. If they are stored in that order, the copies become views. Values, shapes, parameters and
    `state_dict` do not change, only strides. A TransformerBridge does not copy, and is left alone.
    """
    if is_bridge(model):
        return model
    from transformer_lens.components.mlps.gated_mlp import GatedMLP

    _store(model.unembed.W_U, (1, 0))
    for block in model.blocks:
        for name in ("W_Q", "W_K", "W_V", "_W_K", "_W_V"):
            _store(dict(block.attn.named_parameters(recurse=False)).get(name), (0, 2, 1))
        _store(block.attn.W_O, (2, 0, 1))
        if isinstance(getattr(block, "mlp", None), GatedMLP):
            for weight in (block.mlp.W_in, block.mlp.W_gate, block.mlp.W_out):
                _store(weight, (1, 0))
    return model


def _store(weight: Tensor | None, order: tuple[int, ...]) -> None:
    """Makes `weight.permute(order)` contiguous. A quantized weight, which has another number of axes, is left alone."""
    if weight is not None and weight.ndim == len(order) and weight.is_floating_point():
        back = tuple(order.index(axis) for axis in range(len(order)))
        weight.data = weight.data.permute(order).contiguous().permute(back)
