"""Diagnostics of a key covariance: how well it is estimated, and how far to shrink it where keys are few."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import checked_result


@checked_result
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

    @property
    def expected_error(self) -> float | None:
        """About how far ROME's direction C^-1 k is from what endless text of that kind would give: 1 - cosine.

        A quarter of the distance between the halves: each is off by its own error, and their mean by half of one. None
        where that distance is not known.
        """
        return None if self.half_cosine is None else (1 - self.half_cosine) / 4


def factor(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"] | None:
    """Cholesky factor in float64; None if the matrix is singular.

    It is made in place, and stored by columns, which LAPACK takes as it is: a copy of a large one takes gigabytes.
    """
    lower = matrix.to(torch.float64, copy=True).T
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    return None if failed or not lower.isfinite().all() else lower


def solved(lower: Float[Tensor, "d d"], columns: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
    """C^-1 times some columns, by C's Cholesky factor."""
    below = torch.linalg.solve_triangular(lower, columns, upper=False)
    return torch.linalg.solve_triangular(lower.T, below, upper=True)


def effective_rank(eigenvalues: Float[Tensor, " d"]) -> float:
    """exp of the entropy of the eigenvalues, normalised to sum 1 (Roy and Vetterli 2007, Eq. 3 and definition 1)."""
    shares = eigenvalues.clamp(min=0) / eigenvalues.clamp(min=0).sum()
    return torch.special.entr(shares).sum().exp().item()


def condition_number(lower: Float[Tensor, "d d"] | None) -> float:
    """Largest over smallest eigenvalue of a matrix, from its Cholesky factor; at most 1 / epsilon of float64 (4.5e15),
    which it is if there is no factor.

    Only these two are sought (by ARPACK): all eigenvalues would take d^3 operations, minutes for the widest models.
    """
    most = 1 / torch.finfo(torch.float64).eps
    if lower is None:
        return most

    def multiplied(vector: Tensor) -> Tensor:
        return lower @ (vector.to(lower.device) @ lower)

    def divided(vector: Tensor) -> Tensor:
        return solved(lower, vector.to(lower.device)[:, None])[:, 0]

    largest, inverse = (_largest_eigenvalue(product, len(lower)) for product in (multiplied, divided))
    return min(most, largest * inverse)


def _largest_eigenvalue(product: Callable[[Tensor], Tensor], width: int) -> float:
    """Of a symmetric matrix that is known by its products with vectors."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    if width == 1:
        return product(torch.ones(1, dtype=torch.float64)).item()

    def multiplied(vector: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(vector).flatten()).cpu().numpy()

    operator = LinearOperator((width, width), multiplied, dtype="d")
    start = np.random.default_rng(0).standard_normal(width)
    return float(eigsh(operator, k=1, which="LA", v0=start, tol=1e-6, return_eigenvectors=False)[0])


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
    columns = keys.T.to(one)
    solutions = solved(one, columns), solved(other, columns)
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
