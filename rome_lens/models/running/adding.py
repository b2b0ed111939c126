"""A check that a block adds its MLP's contribution to the residual stream, as the search for v* assumes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rome_lens.errors import EditError
from rome_lens.models.hook_points import key_name, state_name
from rome_lens.models.kinds import Model
from rome_lens.models.mlp.contribution import mlp_contribution, mlp_output
from rome_lens.models.running.forward import run_and_read

_APART = 0.05


@torch.no_grad()
def check_added(model: Model, layer: int, row: Sequence[int]) -> None:
    """Raises EditError unless the block's output is linear in its MLP's contribution, and that is known from the keys.

    Both are tried on the first tokens of a row: the contribution is computed from the keys, and doubled by a hook.
    """
    tokens = torch.tensor([row[:4]], device=model.cfg.device)
    names = key, contributed, after = key_name(layer), state_name("mlp", layer), state_name("resid", layer)
    plain = run_and_read(model, tokens, names, stop_at_layer=layer + 1)
    doubled = [(contributed, lambda value, hook: 2 * value)]
    change = run_and_read(model, tokens, [after], stop_at_layer=layer + 1, hooks=doubled)[after] - plain[after]
    expected = mlp_contribution(model, layer, mlp_output(model, layer, plain[key]))
    rounding = 4 * torch.finfo(change.dtype).eps * plain[after].float().norm()
    for found in (plain[contributed], change):
        if not _same(found.float(), expected.float(), rounding):
            raise EditError(
                f"Layer {layer} of {model.cfg.model_name} does not add to the residual stream what its MLP matrix "
                "answers (a norm after the sum, as in OPT 350M, or a step that is not known here), so that no value "
                "can be searched for. Use a model of another family. No weight was changed."
            )


def _same(found: Tensor, expected: Tensor, rounding: Tensor) -> bool:
    return bool((found - expected).norm() <= _APART * expected.norm() + rounding)
