"""TransformerLens' names for the places in a model where states can be read and changed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal

from torch import Tensor

from rome_lens.models.kinds import Model

Kind = Literal["resid", "mlp", "attn", "head"]
"""What can be restored: the residual stream after a layer, the output of its MLP, of its attention, or of one head."""
Hook = Callable[..., Tensor | None]
HookList = Sequence[tuple[str, Hook]]
EMBEDDING = "hook_embed"


def hooked(model: Model, hooks: HookList) -> AbstractContextManager[object]:
    """Inside, the model runs with these hooks."""
    return model.hooks(fwd_hooks=list(hooks))


def state_name(kind: Kind, layer: int) -> str:
    """The hook point of the states that tracing restores.

    "resid" is the block's output; "mlp" and "attn" are what these add to the residual stream: all are
    [batch, pos, d_model]. "head" is before attention's output matrix, [batch, pos, head, d_head]: each head's output is
    a linear function of it.
    """
    names = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out", "head": "attn.hook_z"}
    return f"blocks.{layer}.{names[kind]}"


def input_name(layer: int) -> str:
    """The hook point of the residual stream before a block, [batch, pos, d_model]."""
    return f"blocks.{layer}.hook_resid_pre"


def key_name(layer: int) -> str:
    """The hook point of the MLP's inner activations, [batch, pos, d_mlp]: the keys of paper section 3.1."""
    return f"blocks.{layer}.mlp.hook_post"
