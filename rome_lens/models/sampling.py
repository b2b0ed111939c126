"""Text that a model writes."""

from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.calling import undisturbed
from rome_lens.models import bridge
from rome_lens.models.kinds import Model, is_bridge
from rome_lens.models.running import check_finite, logits, reader


@torch.no_grad()
def write_on(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    given: Int[Tensor, "batch pos"],
    *,
    chances: Float[Tensor, "batch pos"],
    top_k: int,
) -> Int[Tensor, "batch pos"]:
    """Rows of tokens whose places that are not `given` are filled with sampled tokens, from left to right.

    All rows advance together, and one that is given longer reads on while others already write; so a row does not
    depend on the others, but for rounding.

    Args:
        model: is run, with a key/value cache.
        tokens: the rows; what stands where `given` is 0 is not read.
        given: 1 for the tokens that are there, at the start of each row, and 0 for those to be drawn.
        chances: numbers from [0, 1): each token is drawn by inverting the distribution at its own.
        top_k: how many of the most probable tokens are drawn from; 1: the most probable one.

    Raises:
        NotFiniteError: the model's logits are NaN or infinite.
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
    return tokens


def sample_text(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    *,
    new_tokens: int,
    seed: int,
    top_k: int | None = None,
) -> list[str]:
    """What the model appends to equally long token rows, drawn with one seed for all of them, without special tokens.

    Torch's random state is put back.
    """
    device = tokens.device
    devices = [] if device.type == "cpu" else [device]
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.random.fork_rng(devices=devices, device_type=device.type))
        if is_bridge(model):
            stack.enter_context(bridge.finding_the_cache(model, range(model.cfg.n_layers)))
        torch.manual_seed(seed)
        sampled = model.generate(
            tokens, max_new_tokens=new_tokens, top_k=top_k, stop_at_eos=False, verbose=False, return_type="tokens"
        )
    return model.tokenizer.batch_decode(sampled[:, tokens.shape[1] :], skip_special_tokens=True)


def sample_texts(model: Model, count: int, *, new_tokens: int, seed: int, top_k: int | None = None) -> list[str]:
    """Texts of equally many tokens that the model writes after nothing but BOS."""
    tokenizer = model.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = torch.full((count, 1), start, device=model.cfg.device)
    return sample_text(model, rows, new_tokens=new_tokens, seed=seed, top_k=top_k)
