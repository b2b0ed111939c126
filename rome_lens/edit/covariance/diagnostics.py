"""Diagnostics of a key covariance: how well it is estimated, and how far to shrink it where keys are few."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import checked


@checked
@dataclass(frozen=True)
class CovarianceReport:
    """Diagnostics of a KeyCovariance: how well it is estimated.

    Attributes:
        tokens: number of keys that it is the mean of.
        width: dimension of a key, d_mlp. With fewer tokens than that it is singular.
        effective_rank: exp of the entropy of the normalised eigenvalues, from 1 to `width`: the number of directions
            that keys occupy (Roy and Vetterli 2007, "The effective rank").
        condition_number: largest over smallest eigenvalue; see `KeyCovariance.condition_number`.
        half_difference: |C1 - C2| / |C| in the Frobenius norm, where C1 and C2 are estimated on even and odd pieces of
            the text. If pieces are independent, the error of C itself is about half of this.
        half_cosine: cosine between C1^-1 k and C2^-1 k, ROME's direction u: the median over the fingerprint's keys.
        shrinkage: 0 for the estimate itself, up to 1 for a multiple of the identity (`KeyCovariance.shrunk`).

    The halves are compared before any shrinkage; None if a half was singular or is unknown.
    """

    tokens: int
    width: int
    effective_rank: float
    condition_number: float
    half_difference: float | None
    half_cosine: float | None
    shrinkage: float


def factor(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"] | None:
    """Cholesky factor in float64; None if the matrix is singular."""
    lower, failed = torch.linalg.cholesky_ex(matrix.double())
    return None if failed or not lower.isfinite().all() else lower


def effective_rank(eigenvalues: Float[Tensor, " d"]) -> float:
    """exp of the entropy of the eigenvalues, normalised to sum 1 (Roy and Vetterli 2007, Eq. 3 and definition 1)."""
    shares = eigenvalues.clamp(min=0) / eigenvalues.clamp(min=0).sum()
    return torch.special.entr(shares).sum().exp().item()


def condition_number(eigenvalues: Float[Tensor, " d"]) -> float:
    """Largest over smallest of ascending eigenvalues, at most 1 / epsilon of float64 (4.5e15)."""
    epsilon = torch.finfo(torch.float64).eps
    return (eigenvalues[-1] / eigenvalues[0]).item() if eigenvalues[0] > epsilon * eigenvalues[-1] else 1 / epsilon


def halves_difference(first: Float[Tensor, "d d"], second: Float[Tensor, "d d"]) -> float:
    """|C1 - C2| divided by the norm of their mean."""
    return ((first - second).norm() / ((first + second) / 2).norm()).item()


def median_cosine(
    first: Float[Tensor, "d d"], second: Float[Tensor, "d d"], keys: Float[Tensor, "key d"]
) -> float | None:
    """Median over keys of the cosine between C1^-1 k and C2^-1 k; None if either matrix is singular."""
    one, other = factor(first), factor(second)
    if one is None or other is None:
        return None
    columns = keys.T.double()
    solutions = torch.cholesky_solve(columns, one), torch.cholesky_solve(columns, other)
    return torch.cosine_similarity(solutions[0], solutions[1], dim=0).median().item()


def oas_intensity(matrix: Float[Tensor, "d d"], tokens: int) -> float:
    """Oracle approximating shrinkage: how far to shrink a second moment towards a multiple of the identity.

    Chen, Wiesel, Eldar and Hero (2010), "Shrinkage algorithms for MMSE covariance estimation", Eq. 23. It assumes
    independent keys from a normal distribution with mean 0.
    """
    width = len(matrix)
    trace = matrix.double().trace() ** 2
    square = matrix.double().square().sum()
    above = (1 - 2 / width) * square + trace
    below = (tokens + 1 - 2 / width) * (square - trace / width)
    return 1.0 if below <= above else (above / below).item()
