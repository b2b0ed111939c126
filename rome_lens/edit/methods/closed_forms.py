"""Closed forms of MEMIT, EMMET and AlphaEdit for writing several keys into one matrix.

Given the requests' keys K (as rows) and the residuals R, by which the outputs are to change, each finds the update D of
W_out += D. All three are

    D = M K^T (K M K^T + ridge I)^-1 R

and differ in M, the metric in which D is small, and in the ridge. The functions return the left factor, all before R.
With one key, M = C^-1 and no ridge, this is ROME's Eq. 2.

Keys P may be preserved: the minimum is then sought among the D with P D = 0. That is the same form with
M' = M - M P^T (P M P^T)^+ P M in place of M, which writes nothing to P. Of a request's own k M k^T only a share is
left in k M' k^T; its ridge is lowered to that share, so that a request counts against the ridge as much as with nothing
preserved: ridge S in place of ridge I, with these shares on the diagonal of S.
`earlier` is what a sequence keeps of the keys of its earlier batches, K_p^T K_p, whose outputs D is to change as
little as those of C's keys (the cache of jianghoucheng/AlphaEdit).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.errors import CovarianceError, EditError
from rome_lens.models import in_float64

LEAST_INDEPENDENCE = 1e-6
_PART_OF_RANK = 4  # one of so many dimensions at most is spent on differences between contexts
_ROUNDING = 1e-12  # of squared lengths: preserved keys that differ by less count as one


@dataclass(frozen=True)
class PreservedKeys:
    """Keys whose answers have to stay.

    Attributes:
        keys: one a row, in float64.
        prompts: the text that each of the first keys is of; the others are differences of keys.
    """

    keys: Float[Tensor, "preserved d_mlp"]
    prompts: Sequence[str]

    @property
    def directions(self) -> Float[Tensor, "preserved d_mlp"]:
        """The keys with length 1; a key of zeros, as padding tokens have in some models, stays what it is."""
        lengths = self.keys.norm(dim=-1, keepdim=True)
        return self.keys / torch.where(lengths > 0, lengths, 1.0)


def with_context_differences(
    preserved: PreservedKeys | None,
    keys: Float[Tensor, "request d_mlp"],
    bare: Float[Tensor, "request d_mlp"],
) -> PreservedKeys | None:
    """The preserved keys and, for each request, the difference between the bare prompt's key and the mean key, so that
    an update adds the same at both. Differences that are rounding are left out; None: nothing is left to preserve.

    Each takes a dimension. Of a large batch only the most different requests get theirs, at most a quarter of d_mlp.
    """
    differences = in_float64(bare - keys)
    relative = (differences.norm(dim=-1) / keys.norm(dim=-1)).cpu()
    most = relative.topk(min(len(keys), keys.shape[1] // _PART_OF_RANK)).indices
    chosen = most[relative[most] > LEAST_INDEPENDENCE].sort().values.to(differences.device)
    if len(chosen) == 0:
        return preserved
    if preserved is None:
        return PreservedKeys(differences[chosen], ())
    return PreservedKeys(torch.cat([preserved.keys, differences[chosen].to(preserved.keys)]), preserved.prompts)


def project_out(
    keys: Float[Tensor, "request d_mlp"],
    metric: Callable[[Float[Tensor, "n d_mlp"]], Float[Tensor, "n d_mlp"]],
    preserved: PreservedKeys | None,
) -> tuple[Float[Tensor, "request d_mlp"], Float[Tensor, " request"]]:
    """K M' for M' = M - M P^T (P M P^T)^+ P M, given K and `metric`, which multiplies rows with M; and each key's
    share k M' k^T / k M k^T.

    Preserved keys may depend on each other: all are to get nothing, so they cannot contradict each other.

    Raises:
        EditError: a request's key is one of those to preserve, or made of them.
    """
    if preserved is None:
        return metric(keys), torch.ones(len(keys)).to(keys)
    keys, others = keys.to(preserved.keys), preserved.directions
    before, moved = metric(keys), metric(others)
    gram = moved @ others.T
    squares = gram.diagonal()
    scale = torch.where(squares > _ROUNDING * squares.max(), squares.rsqrt(), 0.0)  # 0: M writes nothing there anyway
    values, vectors = torch.linalg.eigh(gram * scale * scale[:, None])
    kept = values > _ROUNDING * values[-1]
    basis = (vectors[:, kept] * values[kept].rsqrt()).T * scale  # of P M P^T: basis gram basis^T = I
    found = before
    for _ in range(2):  # the second takes away what rounding has left
        found = found - (found @ others.T @ basis.T) @ (basis @ moved)
    shares = (found * keys).sum(-1) / (before * keys).sum(-1)
    if not (shares > LEAST_INDEPENDENCE).all():
        _refuse(before[shares.argmin()] @ others.T * scale, shares.min().item(), preserved)
    return found, shares


def _refuse(alike: Float[Tensor, " preserved"], share: float, preserved: PreservedKeys) -> None:
    """Raises EditError that names the preserved prompt with the most similar key."""
    named = "Edit without constrain_bare_prompt, or in fewer requests at once."
    if preserved.prompts:
        most = int(alike[: len(preserved.prompts)].abs().argmax())
        named = f"The most similar is of {preserved.prompts[most]!r}. Take it off the list, or preserve fewer prompts."
    raise EditError(
        f"The edited key lies in the span of the {len(alike)} preserved keys ({share:.0e} of it lies outside; at least "
        f"{LEAST_INDEPENDENCE} is needed), so no update can change one and spare the others. {named} No weight was "
        "changed."
    )


def memit_factor(
    keys: Float[Tensor, "request d_mlp"],
    covariance: KeyCovariance,
    weight: float,
    preserved: PreservedKeys | None = None,
    *,
    ridge: float = 0.0,
    earlier: Float[Tensor, "d_mlp d_mlp"] | None = None,
) -> Float[Tensor, "d_mlp request"]:
    """Left factor of the D that minimises weight * tr(D^T C D) + |K D - R|^2 (MEMIT, Meng et al. 2023, arXiv
    2210.07229, Eq. 14).

    D = (weight C + K^T K)^-1 K^T R. By the Woodbury identity that is M = C^-1 with the weight as ridge, so besides C
    only a matrix of the batch's size has to be solved with.
    With a ridge or earlier keys, weight C becomes weight C + ridge I + K_p^T K_p: |D|^2 and |K_p D|^2 count too.
    """
    if not ridge and earlier is None:
        return _factor(keys, *project_out(keys, covariance.solve, preserved), weight)
    kept = weight * covariance.second_moment.to(keys) + ridge * torch.eye(keys.shape[1]).to(keys)
    kept = kept if earlier is None else kept + earlier.to(keys)
    return _factor(keys, *project_out(keys, lambda rows: torch.linalg.solve(kept.to(rows), rows.T).T, preserved), 1.0)


def emmet_factor(
    keys: Float[Tensor, "request d_mlp"], covariance: KeyCovariance, preserved: PreservedKeys | None = None
) -> Float[Tensor, "d_mlp request"]:
    """Left factor of the D that minimises tr(D^T C D) subject to K D = R (EMMET, Gupta et al. 2024, arXiv 2403.14236).

    Raises:
        EditError: the keys are linearly dependent, so that K D = R has no solution for some R.
    """
    solved, shares = project_out(keys, covariance.solve, preserved)
    gram = keys @ solved.T
    scale = gram.diagonal().rsqrt()
    independence = torch.linalg.eigvalsh(gram * scale * scale[:, None])[0].item()
    if not independence > LEAST_INDEPENDENCE:
        raise EditError(
            f"The keys of these {len(keys)} requests depend on each other in layer {covariance.layer} (the least "
            f"eigenvalue of their cosines is {independence:.1e}, expected above {LEAST_INDEPENDENCE}), so that EMMET's "
            "equalities contradict each other. Leave out requests that begin alike, up to the end of the same "
            "subject, or use memit, which weighs them. No weight was changed."
        )
    return _factor(keys, solved, shares, 0.0)


def alphaedit_factor(
    keys: Float[Tensor, "request d_mlp"],
    covariance: KeyCovariance,
    threshold: float,
    ridge: float,
    preserved: PreservedKeys | None = None,
    *,
    earlier: Float[Tensor, "d_mlp d_mlp"] | None = None,
) -> Float[Tensor, "d_mlp request"]:
    """Left factor of the D that minimises ridge * |D|^2 + |K D - R|^2 subject to D = P D (AlphaEdit, Fang et al. 2024,
    arXiv 2410.02355, section 3).

    P = U U^T projects on the eigenvectors U of C with eigenvalues below the threshold; keys orthogonal to these are
    unaffected. With earlier keys |K_p D|^2 counts too: M = U (U^T K_p^T K_p U + ridge I)^-1 U^T, with 1 as the ridge.

    Raises:
        CovarianceError: there is no such eigenvector.
    """
    free = covariance.directions_below(threshold).to(keys)
    if free.shape[1] == 0:
        values = torch.linalg.eigvalsh(covariance.second_moment.double())
        raise CovarianceError(
            f"No eigenvalue of the covariance of layer {covariance.layer} is below null_space_threshold={threshold} "
            f"(the least is {values[0].item():.2e}, the median {values.median().item():.2e}). Raise the threshold."
        )
    if earlier is None:
        return _factor(keys, *project_out(keys, lambda rows: rows @ free.to(rows) @ free.to(rows).T, preserved), ridge)
    inner = free.T @ earlier.to(keys) @ free + ridge * torch.eye(free.shape[1]).to(keys)
    solved = torch.linalg.solve(inner, free.T)  # free M free^T is the metric
    return _factor(keys, *project_out(keys, lambda rows: rows @ free.to(rows) @ solved.to(rows), preserved), 1.0)


def _factor(
    keys: Float[Tensor, "request d_mlp"],
    transformed: Float[Tensor, "request d_mlp"],
    shares: Float[Tensor, " request"],
    ridge: float,
) -> Float[Tensor, "d_mlp request"]:
    """M K^T (K M K^T + ridge S)^-1 from K and K M, for a symmetric M."""
    gram = keys @ transformed.T
    return torch.linalg.solve(gram + ridge * torch.diag(shares).to(gram), transformed).T
