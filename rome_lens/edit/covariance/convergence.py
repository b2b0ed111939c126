"""When a covariance has seen enough text: the directions C^-1 k stop moving."""

from collections.abc import Iterable, Iterator

from jaxtyping import Float
from torch import Tensor

from rome_lens.edit.covariance.diagnostics import median_cosine
from rome_lens.edit.covariance.sums import PartialSums

_FIRST = 2  # times d_mlp: before, one half is singular


def until_settled(
    steps: Iterable[None], partial: PartialSums, probe: Float[Tensor, "layer key d_mlp"], *, tolerance: float, step: int
) -> Iterator[None]:
    """The steps, up to the one after which two halves of the text agree in every layer.

    They are compared whenever the tokens have doubled: a comparison factors matrices, which costs more than a step. A
    run that goes on compares where an unbroken one does, since that depends on the tokens alone.

    Args:
        steps: each adds to `partial`.
        partial: the sums so far.
        probe: keys k, for each layer.
        tolerance: the largest distance, 1 - cosine, between both halves' C^-1 k, as the median over the keys.
        step: how many tokens a step adds.
    """
    if not _settled(partial, probe, tolerance, step):
        for _ in steps:
            yield
            if _settled(partial, probe, tolerance, step):
                return


def _settled(partial: PartialSums, probe: Float[Tensor, "layer key d_mlp"], tolerance: float, step: int) -> bool:
    tokens, first = sum(partial.tokens), _FIRST * probe.shape[-1]
    doublings, before = ((count // first).bit_length() for count in (tokens, max(0, tokens - step)))
    if doublings == before:
        return False
    for (even, odd), keys in zip(partial.sums, probe, strict=True):
        cosine = median_cosine(even / partial.tokens[0], odd / partial.tokens[1], keys)
        if cosine is None or 1 - cosine > tolerance:
            return False
    return True
