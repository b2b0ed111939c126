"""k*: the key that stands for the subject (paper section 3.1, step 1, Eq. 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from rome_lens.edit.contexts import in_context
from rome_lens.facts import EditRequest
from rome_lens.models import key_name, run
from rome_lens.tokens import pad


@torch.no_grad()
def subject_keys(
    model: HookedTransformer, layer: int, request: EditRequest, contexts: Sequence[str]
) -> Float[Tensor, "context d_mlp"]:
    """The MLP's inner activation at the subject's last token, in float32, for the prompt in each context.

    k* is their mean (Eq. 3).
    """
    located = [in_context(model, request, context) for context in contexts]
    rows, mask = pad([text.ids[: position + 1] for text, position in located])
    positions = torch.tensor([position for _, position in located])
    found: list[Tensor] = []
    device = model.cfg.device
    run(
        model,
        rows.to(device),
        mask=mask.to(device),
        stop_at_layer=layer + 1,
        hooks=[(key_name(layer), lambda value, hook: found.append(value))],
    )
    keys = found[0]
    return keys[torch.arange(len(keys)), positions].float()
