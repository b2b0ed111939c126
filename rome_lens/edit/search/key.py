"""k*, the key of the subject: the MLP's inner activation, averaged over contexts (paper section 3.1, Eq. 3)."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.records import EditRequest
from rome_lens.edit.search.contexts import EditedToken, in_context
from rome_lens.models import Model, in_float64, key_name, pad, run_and_read, tokens_that_fit
from rome_lens.models.tokens import batches


@torch.no_grad()
def subject_activations(
    model: Model,
    name: str,
    layer: int,
    prompts: Sequence[tuple[EditRequest, str]],
    *,
    token: EditedToken = "subject_end",
) -> Float[Tensor, "prompt width"]:
    """The activation at a hook point of a block at the edited token, in float32, for each (request, context)."""
    located = [in_context(model, request, context, token=token) for request, context in prompts]
    rows = [text.ids[: position + 1] for text, position, _ in located]
    device = model.cfg.device
    found: dict[tuple[int, ...], Tensor] = {}
    for batch in batches(sorted(set(rows), key=len), tokens_that_fit(model)):
        tokens, mask = (each.to(device) for each in pad(batch))
        values = run_and_read(model, tokens, [name], mask=mask, stop_at_layer=layer + 1)[name]
        last = values[torch.arange(len(batch)), mask.sum(1) - 1]
        found |= zip(batch, last.float(), strict=True)
    return torch.stack([found[row] for row in rows])


@torch.no_grad()
def prefix_activations(
    model: Model, name: str, layer: int, rows: Iterable[tuple[int, ...]]
) -> dict[tuple[int, ...], Float[Tensor, " width"]]:
    """The activation at a hook point of a block at every position of token rows, in float64, by the tokens up to and
    with that position.
    """
    found: dict[tuple[int, ...], Tensor] = {}
    for batch in batches(sorted(set(rows), key=len), tokens_that_fit(model)):
        tokens, mask = (each.to(model.cfg.device) for each in pad(batch))
        read = in_float64(run_and_read(model, tokens, [name], mask=mask, stop_at_layer=layer + 1)[name])
        found |= {ids[: i + 1]: read[row, i] for row, ids in enumerate(batch) for i in range(len(ids))}
    return found


def subject_keys(
    model: Model,
    layer: int,
    request: EditRequest,
    contexts: Sequence[str],
    *,
    token: EditedToken = "subject_end",
) -> Float[Tensor, "context d_mlp"]:
    """The key of the edited token, in float32, with the prompt in each context; k* is their mean (Eq. 3)."""
    return subject_activations(model, key_name(layer), layer, [(request, context) for context in contexts], token=token)
