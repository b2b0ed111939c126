"""k*: the key that stands for the subject (paper section 3.1, step 1, Eq. 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from rome_lens.edit.contexts import in_context
from rome_lens.facts import EditRequest
from rome_lens.memory import tokens_that_fit
from rome_lens.models import key_name, run, run_and_read
from rome_lens.tokens import pad


def mlp_keys(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], layers: Sequence[int]
) -> dict[int, Float[Tensor, "batch pos d_mlp"]]:
    """The MLP's inner activations at every position, for each layer, in the model's dtype."""
    device = model.cfg.device
    names = {layer: key_name(layer) for layer in layers}
    read = run_and_read(
        model, tokens.to(device), list(names.values()), mask=mask.to(device), stop_at_layer=max(layers) + 1
    )
    return {layer: read[name] for layer, name in names.items()}


@torch.no_grad()
def subject_activations(
    model: HookedTransformer, name: str, layer: int, asked: Sequence[tuple[EditRequest, str]]
) -> Float[Tensor, "asked width"]:
    """What passes a hook point of a block at the subject's last token, in float32, for each (request, context)."""
    located = [in_context(model, request, context) for request, context in asked]
    ids = [text.ids[: position + 1] for text, position in located]
    at_once = max(1, tokens_that_fit(model) // max(map(len, ids)))
    device = model.cfg.device
    found: list[Tensor] = []
    for start in range(0, len(ids), at_once):
        part = ids[start : start + at_once]
        rows, mask = pad(part)
        ends = torch.tensor([len(row) - 1 for row in part])
        hook = (name, lambda value, hook, ends=ends: found.append(value[torch.arange(len(ends)), ends].float()))
        run(model, rows.to(device), mask=mask.to(device), stop_at_layer=layer + 1, hooks=[hook])
    return torch.cat(found)


def subject_keys(
    model: HookedTransformer, layer: int, request: EditRequest, contexts: Sequence[str]
) -> Float[Tensor, "context d_mlp"]:
    """The MLP's inner activation at the subject's last token, in float32, for the prompt in each context.

    k* is their mean (Eq. 3).
    """
    return subject_activations(model, key_name(layer), layer, [(request, context) for context in contexts])
