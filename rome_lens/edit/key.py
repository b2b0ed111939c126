"""Keys, the MLPs' inner activations, and k*, the one that stands for the subject (paper section 3.1, Eq. 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from rome_lens.edit.contexts import in_context
from rome_lens.facts import EditRequest
from rome_lens.models import Hook, key_name, run
from rome_lens.tokens import pad


@torch.no_grad()
def mlp_keys(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], layers: Sequence[int]
) -> dict[int, Float[Tensor, "batch pos d_mlp"]]:
    """The keys of each layer for right-padded tokens, in one pass that runs no block after the last of the layers."""
    keys: dict[int, Tensor] = {}

    def keep(layer: int) -> Hook:
        return lambda value, hook: keys.update({layer: value})

    device = model.cfg.device
    run(
        model,
        tokens.to(device),
        mask=mask.to(device),
        stop_at_layer=max(layers) + 1,
        hooks=[(key_name(layer), keep(layer)) for layer in layers],
    )
    return keys


def subject_keys(
    model: HookedTransformer, layer: int, request: EditRequest, contexts: Sequence[str]
) -> Float[Tensor, "context d_mlp"]:
    """The MLP's inner activation at the subject's last token, in float32, for the prompt in each context.

    k* is their mean (Eq. 3).
    """
    located = [in_context(model, request, context) for context in contexts]
    rows, mask = pad([text.ids[: position + 1] for text, position in located])
    positions = torch.tensor([position for _, position in located])
    keys = mlp_keys(model, rows, mask, [layer])[layer]
    return keys[torch.arange(len(keys)), positions].float()
