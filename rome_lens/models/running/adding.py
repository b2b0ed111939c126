"""What is added to the residual stream: by the keys of a block, and a check of what the block's own MLP adds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from rome_lens.errors import EditError
from rome_lens.models.hook_points import hooked, key_name, state_name
from rome_lens.models.kinds import EditableModel, Model
from rome_lens.models.mlp.contribution import mlp_contribution, mlp_output
from rome_lens.models.mlp.huggingface import MODULE_OF, mlp_module
from rome_lens.models.running.forward import run_and_read

_APART = 0.05
Change = Callable[[Float[Tensor, "*n d_mlp"]], Float[Tensor, "*n d_model"] | None]


@contextmanager
def added_by_key(model: EditableModel, layer: int, change: Change) -> Iterator[None]:
    """Inside, the residual stream after a block is larger by `change` of the keys of its MLP, whatever the block does
    to its MLP's output. Where that is None, the stream is not touched. No weight is changed.

    Raises:
        EditError: a Hugging Face model of a family that is not known here.
    """
    keys: list[Tensor] = []  # of the forward pass that is running

    def read(key: Tensor) -> None:
        keys[:] = [key]

    def added(stream: Tensor) -> Tensor | None:
        if not keys or (more := change(keys.pop())) is None:
            return None
        return (stream.float() + more.to(stream.device).reshape(stream.shape)).to(stream.dtype)

    if not isinstance(model, PreTrainedModel):
        names = key_name(layer), state_name("resid", layer)
        with hooked(
            model, list(zip(names, (lambda value, hook: read(value), lambda value, hook: added(value)), strict=True))
        ):
            yield
        return

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        if (found := added(stream)) is None:
            return None
        return (found, *output[1:]) if isinstance(output, tuple) else found

    _, matrix = mlp_module(model, layer)
    block = model.get_submodule(MODULE_OF[model.config.model_type].partition("{}")[0] + str(layer))
    with ExitStack() as stack:
        stack.callback(matrix.register_forward_pre_hook(lambda module, args: read(args[0])).remove)
        stack.callback(block.register_forward_hook(after).remove)
        yield


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
