"""The closed forms by which MEMIT, EMMET and AlphaEdit write several keys at once into one matrix.

Each finds D for W_out += D, given the requests' keys K and what each is to answer more than it does, R. All three are
D = M KT (K M KT + ridge I)^-1 R, with rows of K as keys; they differ in M, which says where writing is cheap, and in
the ridge. The functions give the left factor, all before R. With one key, M = C^-1 and no ridge, it is ROME's Eq. 2.

`earlier` is what a sequence keeps of the keys of its earlier batches, K_pT K_p, to which D is to answer as little as to
the keys of C (the cache of jianghoucheng/AlphaEdit).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.errors import CovarianceError, EditError

LEAST_INDEPENDENCE = 1e-6


def memit_factor(
    keys: Float[Tensor, "request d_mlp"],
    covariance: KeyCovariance,
    weight: float,
    *,
    ridge: float = 0.0,
    earlier: Float[Tensor, "d_mlp d_mlp"] | None = None,
) -> Float[Tensor, "d_mlp request"]:
    """Of the D that makes weight * tr(DT C D) + |K D - R|^2 least (Meng et al. 2023, arXiv 2210.07229, Eq. 14).

    There D = (weight C + KT K)^-1 KT R, which is the same as M = C^-1 with the weight as the ridge (Woodbury), and then
    only a matrix as large as the batch is solved with besides C. With a ridge or earlier keys, weight C is
    weight C + ridge I + K_pT K_p: |D|^2 and |K_p D|^2 are to be small too.
    """
    if ridge or earlier is not None:
        kept = weight * covariance.second_moment.to(keys) + ridge * torch.eye(keys.shape[1]).to(keys)
        kept = kept if earlier is None else kept + earlier.to(keys)
        return _factor(keys, torch.linalg.solve(kept, keys.T).T, 1.0)
    return _factor(keys, covariance.solve(keys), weight)


def emmet_factor(keys: Float[Tensor, "request d_mlp"], covariance: KeyCovariance) -> Float[Tensor, "d_mlp request"]:
    """Of the D that makes tr(DT C D) least among those with K D = R (Gupta et al. 2024, arXiv 2403.14236).

    Raises:
        EditError: the keys depend on each other, so that not every R can be answered.
    """
    solved = covariance.solve(keys)
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
    return _factor(keys, solved, 0.0)


def alphaedit_factor(
    keys: Float[Tensor, "request d_mlp"],
    covariance: KeyCovariance,
    threshold: float,
    ridge: float,
    *,
    earlier: Float[Tensor, "d_mlp d_mlp"] | None = None,
) -> Float[Tensor, "d_mlp request"]:
    """Of the D that makes ridge * |D|^2 + |K D - R|^2 least among the D = P D, which write nothing to keys outside of
    P's range (Fang et al. 2024, arXiv 2410.02355, section 3).

    P = U UT projects on the eigenvectors U of C with eigenvalues below the threshold. With earlier keys, |K_p D|^2 is
    to be small too: M = U (UT K_pT K_p U + ridge I)^-1 UT with the ridge 1 in place of M = P.

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
        return _factor(keys, keys @ free @ free.T, ridge)
    inner = free.T @ earlier.to(keys) @ free + ridge * torch.eye(free.shape[1]).to(keys)
    return _factor(keys, torch.linalg.solve(inner, free.T @ keys.T).T @ free.T, 1.0)


def _factor(
    keys: Float[Tensor, "request d_mlp"], transformed: Float[Tensor, "request d_mlp"], ridge: float
) -> Float[Tensor, "d_mlp request"]:
    """M KT (K M KT + ridge I)^-1, given K and K M, for a symmetric M."""
    gram = keys @ transformed.T
    return torch.linalg.solve(gram + ridge * torch.eye(len(keys)).to(gram), transformed).T
