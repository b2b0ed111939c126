"""Text that a model writes."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rome_lens.calling import undisturbed_call
from rome_lens.models.kinds import Model, is_bridge
from rome_lens.models.parameters import prefix_ids
from rome_lens.models.running import bridge
from rome_lens.models.running.forward import check_finite, logits, reader, run


@torch.no_grad()
def write_on(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    given: Int[Tensor, "batch pos"],
    *,
    chances: Float[Tensor, "batch pos"],
    top_k: int,
    until: Callable[[Int[Tensor, "batch read"]], bool] = lambda tokens: False,
) -> Int[Tensor, "batch pos"]:
    """Fills the positions of token rows that are not `given` with sampled tokens, from left to right.

    All rows advance together: a row with a longer prompt still reads it while others already write. So a row does not
    depend on the others, except by rounding.

    Args:
        model: Model to run, with a key/value cache.
        tokens: The rows; values where `given` is 0 are ignored.
        given: 1 for the prompt's tokens, at the start of each row, and 0 for those to be sampled.
        chances: Numbers from [0, 1); each token is sampled by inverting its distribution's cumulative sum at its own.
        top_k: Number of most probable tokens to sample from; 1: always the most probable one.
        until: Ends the writing early when it is true of the rows as far as they are filled.
    """
    tokens = tokens.clone()
    read_on = reader(model, len(tokens))
    read, end = 0, int(given.sum(1).min())
    while end < tokens.shape[1]:
        residual = read_on(tokens[:, read:end])
        scores = logits(model, residual[:, -1])
        check_finite(model, scores, tokens[:, :end].tolist())
        best = scores.topk(top_k)
        below = best.values.double().softmax(-1).cumsum(-1)[:, :-1].contiguous()
        drawn = torch.searchsorted(below, chances[:, end, None].double(), right=True)
        chosen = best.indices.gather(-1, drawn)[:, 0]
        tokens[:, end] = torch.where(given[:, end].bool(), tokens[:, end], chosen)
        read, end = end, end + 1
        if until(tokens[:, :end]):
            break
    return tokens


class _Drawing(TorchFunctionMode):
    """Inside, this thread draws tokens with a generator of its own: torch's are shared by all threads."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self._generator = generator

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = {"generator": self._generator} if function in (torch.multinomial, Tensor.multinomial) else {}
        return function(*args, **{**(kwargs or {}), **own})


@undisturbed_call
def sample_text(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    *,
    new_tokens: int,
    seed: int,
    top_k: int | None = None,
) -> list[str]:
    """Continuations of equally long token rows, sampled with one seed for all rows, without special tokens.

    Torch's random state is restored.

    Raises:
        NotFiniteError: the model's logits are NaN or infinite.
    """
    with ExitStack() as stack:
        if is_bridge(model):
            stack.enter_context(bridge.finding_the_cache(model, range(model.cfg.n_layers)))
        with torch.no_grad():  # else torch says of NaN that probabilities are wrong, and on a GPU stops the process
            check_finite(model, logits(model, run(model, tokens)[:, -1]), tokens.tolist())
        stack.enter_context(_Drawing(torch.Generator(tokens.device).manual_seed(seed)))
        sampled = model.generate(
            tokens, max_new_tokens=new_tokens, top_k=top_k, stop_at_eos=False, verbose=False, return_type="tokens"
        )
    return model.tokenizer.batch_decode(sampled[:, tokens.shape[1] :], skip_special_tokens=True)


def sample_texts(model: Model, count: int, *, new_tokens: int, seed: int, top_k: int | None = None) -> list[str]:
    """Texts that the model writes after its `prefix_ids` alone, or after BOS, each of `new_tokens` tokens."""
    tokenizer = model.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = torch.tensor([prefix_ids(model) or [start]] * count, device=model.cfg.device)
    return sample_text(model, rows, new_tokens=new_tokens, seed=seed, top_k=top_k)
