"""The norm to which norm anchoring brings each v* of a sequence (NAS, arXiv 2602.02543)."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from rome_lens.checking import checked
from rome_lens.data.records import EditRequest
from rome_lens.edit.search.settings import BatchConfig, SearchConfig
from rome_lens.edit.search.suffix import Place
from rome_lens.edit.search.value import optimise_values
from rome_lens.models import Model

_KEPT = 0.95


@checked
def anchor_norm(
    model: Model, requests: Sequence[EditRequest], *, layer: int, config: SearchConfig, progress: bool = True
) -> float:
    """The mean |v*| of pilot edits, without those above the 0.95 quantile (NAS, arXiv 2602.02543).

    `replace(config, anchor_norm=anchor_norm(...))` is the config of a sequence that is anchored to it.

    Args:
        model: The unedited model; left unchanged.
        requests: The pilot edits; the search for their v* is all of the work.
        layer: The block whose v* is sought: the one that ROME edits, or the last one that MEMIT or AlphaEdit edits.
        config: The numbers of the search: a RomeConfig, or a BatchConfig (MemitConfig, ...), whose v* is a state of the
            residual stream.

    Raises:
        EditError: A loss is not finite.
        ValueError: No requests, no such layer, or a prompt that does not fit.
    """
    if not requests:
        raise ValueError("requests is empty, expected at least 1 EditRequest.")
    at: Place = "resid" if isinstance(config, BatchConfig) else "mlp"
    free, contexts = replace(config, anchor_norm=None), config.contexts_for(model)
    values = optimise_values(model, layer, requests, contexts, free, at=at, progress=progress)
    norms = torch.stack([value.vector.norm() for value in values])
    return norms[norms <= norms.quantile(_KEPT)].mean().item()
