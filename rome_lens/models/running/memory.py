"""How much of a batch fits into memory."""

import psutil
import torch

from rome_lens.models.kinds import Model

_SHARE = 0.25  # of what is free
_LEAST, _MOST = 256, 65_536


def tokens_that_fit(model: Model, *, blocks_kept: int = 1) -> int:
    """How many tokens can go through a block at once in a quarter of the free memory.

    For each token, a block holds several copies of the residual state, of the MLP's inner activations, and of queries,
    keys and values; the token's logits come on top. For a gradient, `blocks_kept` blocks hold theirs at the same time.
    """
    cfg = model.cfg
    device = torch.device(cfg.device)
    of_device = getattr(torch.get_device_module(device), "mem_get_info", None)  # the CPU's module has none
    free = of_device(device)[0] if of_device else psutil.virtual_memory().available
    in_block = 8 * cfg.d_model + 4 * (cfg.d_mlp or 0) + 8 * cfg.n_heads * cfg.d_head
    per_token = torch.finfo(cfg.dtype).bits // 8 * in_block * blocks_kept + 12 * cfg.d_vocab
    return int(min(_MOST, max(_LEAST, _SHARE * free / per_token)))
