"""E[k kT] the plain way: whole forward passes for one layer, with the keys read from TransformerLens' cache.

The tests compare the library's covariances with it, and the benchmark its speed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.models import Model, key_name, prefix_ids


@torch.no_grad()
def plain_second_moment(
    model: Model,
    layer: int,
    ids: Sequence[int],
    length: int,
    *,
    pieces_at_once: int = 1,
    progress: bool = False,
) -> Float[Tensor, "d_mlp d_mlp"]:
    """The mean of k kT over token ids that are cut into pieces of `length`; BOS' own keys are left out.

    Pieces that are run at once have to be equally long.
    """
    before = prefix_ids(model)
    pieces = [[*before, *ids[start : start + length]] for start in range(0, len(ids), length)]
    total = torch.zeros(model.cfg.d_mlp, model.cfg.d_mlp, dtype=torch.float64)
    batches = range(0, len(pieces), pieces_at_once)
    for start in tqdm(batches, desc=f"plain pass for layer {layer}", disable=not progress):
        rows = torch.tensor(pieces[start : start + pieces_at_once], device=model.cfg.device)
        cache = model.run_with_cache(rows, names_filter=key_name(layer))[1]
        keys = cache[key_name(layer)][:, len(before) :].flatten(0, 1).float()
        total += (keys.T @ keys).cpu()
    return (total / len(ids)).float()
