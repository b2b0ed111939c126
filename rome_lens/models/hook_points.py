"""What TransformerLens calls the places in a model where its states can be read and changed."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

Kind = Literal["resid", "mlp", "attn", "head"]
"""What can be restored: the residual stream after a layer, the output of its MLP, of its attention, or of one head."""
Hook = Callable[..., Tensor | None]
HookList = Sequence[tuple[str, Hook]]
EMBEDDING = "hook_embed"


def state_name(kind: Kind, layer: int) -> str:
    """The hook point of the states that tracing restores: the block's output, its MLP's, its attention's, its heads'.

    The first three have shape [batch, pos, d_model]; "mlp" and "attn" are what is added to the residual stream. Heads
    are taken before the output matrix, [batch, pos, head, d_head]: each head's output is a linear function of that.
    """
    names = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out", "head": "attn.hook_z"}
    return f"blocks.{layer}.{names[kind]}"


def input_name(layer: int) -> str:
    """The hook point of the residual stream before a block, [batch, pos, d_model]."""
    return f"blocks.{layer}.hook_resid_pre"


def key_name(layer: int) -> str:
    """The hook point of the MLP's inner activations, [batch, pos, d_mlp]: the keys of paper section 3.1."""
    return f"blocks.{layer}.mlp.hook_post"
