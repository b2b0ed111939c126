"""How much of a batch fits into memory."""

import psutil
import torch

from rome_lens.models.kinds import Model
from rome_lens.models.parameters import in_float64

_SHARE = 0.25  # of what is free
_LEAST, _MOST = 256, 65_536


def tokens_that_fit(model: Model, *, blocks_kept: int = 1) -> int:
    """How many tokens can go through a block at once in a quarter of the free memory.

    For each token, a block holds several copies of the residual state, of the MLP's inner activations, and of queries,
    keys and values; the token's logits come on top. For a gradient, `blocks_kept` blocks hold theirs at the same time.
    """
    cfg = model.cfg
    free = _free_bytes(torch.device(cfg.device))
    in_block = 8 * cfg.d_model + 4 * (cfg.d_mlp or 0) + 8 * cfg.n_heads * cfg.d_head
    per_token = torch.finfo(cfg.dtype).bits // 8 * in_block * blocks_kept + 12 * cfg.d_vocab
    return int(min(_MOST, max(_LEAST, _SHARE * free / per_token)))


def device_for_sums(model: Model, nbytes: int) -> torch.device | None:
    """Where to keep sums in float64: the model's device if half of its free memory holds so many bytes; else None."""
    device = in_float64(torch.empty(0, device=model.cfg.device)).device
    return device if 2 * nbytes <= _free_bytes(device) else None


def _free_bytes(device: torch.device) -> int:
    of_device = getattr(torch.get_device_module(device), "mem_get_info", None)  # the CPU's module has none
    return int(of_device(device)[0] if of_device else psutil.virtual_memory().available)
