"""Edits of many requests at a lower rank, for servers that bound it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import check_whole, checked
from rome_lens.data.records import Continuation, target_rows
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.artifact.update import Update
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import covariances_for
from rome_lens.errors import CovarianceError
from rome_lens.models import Model
from rome_lens.models.teacher_forcing import score_targets, target_log_probabilities


@checked
@dataclass(frozen=True, eq=False)
class CutEdit:
    """An edit of lower rank, and what the cut has cost.

    Attributes:
        edit: of at most the rank that was asked for; without health, since that was the whole edit's.
        lost: a row for each update: `layer`, `matrix`, `rank` before, and `lost`, the share of what it adds to the MLP
            on ordinary text, in mean squares, that the cut has taken away.
        efficacy: a row for each request: `prompt`, `target`, and the target's probability after the bare prompt
            (geometric mean over its tokens) in the model, with the `whole` edit and with the `cut` one.
    """

    edit: Edit
    lost: pd.DataFrame
    efficacy: pd.DataFrame


@checked
def cut_rank(
    model: Model, edit: Edit, rank: int = 16, *, covariances: Mapping[int, KeyCovariance] | None = None
) -> CutEdit:
    """The edit of at most a given rank that adds most nearly the same to the MLP's output on ordinary text.

    An update D adds k^T D to the output for the key k. With E[k k^T] = C, the mean square of what is left out is least
    if D is projected on the first eigenvectors of D^T C D (Eckart and Young, in the metric of C).

    Args:
        model: The model of the edit, on which both are measured; left unchanged.
        edit: The edit.
        rank: The most that an update may have; those of no more stay as they are.
        covariances: C of each layer with a larger update of W_out; None: the one that ships. Inputs of W_in and W_gate
            have no covariance here: their updates are cut in the plain norm.

    Raises:
        ValueError: no covariances are given and none ships for the model.
        CovarianceError: one is missing, or is that of another layer or model.
        EditError: the edit does not fit the model.
    """
    check_whole(rank=rank)
    large = [update for update in edit.updates if update.rank > rank]
    layers = [update.layer for update in large if update.matrix == "out"]
    known = covariances_for(model, covariances) if layers else {}
    if missing := sorted(set(layers) - set(known)):
        raise CovarianceError(
            f"There is no covariance of the layers {missing}, whose updates are of more than rank {rank}. Collect it: "
            f"collect_covariance(model, layers={missing}, texts=...)."
        )
    for layer in set(layers):
        known[layer].check(model, layer)
    cuts = [_cut(update, rank, known[update.layer] if update.matrix == "out" else None) for update in large]
    by_place = {(update.layer, update.matrix): update for update, _ in cuts}
    updates = tuple(by_place.get((update.layer, update.matrix), update) for update in edit.updates)
    shares = iter([share for _, share in cuts])
    lost = pd.DataFrame(
        [(u.layer, u.matrix, u.rank, next(shares) if u.rank > rank else 0.0) for u in edit.updates],
        columns=["layer", "matrix", "rank", "lost"],
    )
    smaller = replace(edit, updates=updates, health=None) if large else edit
    return CutEdit(smaller, lost, _efficacy(model, edit, smaller))


def _cut(update: Update, rank: int, covariance: KeyCovariance | None) -> tuple[Update, float]:
    """The update of that rank, and the share of the mean square that it lacks."""
    left, right = update.left.double(), update.right.double()
    weighted = left if covariance is None else covariance.second_moment.double() @ left
    root = _root(left.T @ weighted)
    _, values, directions = torch.linalg.svd(root @ right, full_matrices=False)
    kept = directions[:rank]
    squares = values.square()
    lost = (squares[rank:].sum() / squares.sum()).item() if squares.sum() > 0 else 0.0
    smaller = replace(update, left=(left @ (right @ kept.T)).float(), right=kept.float())
    return smaller, lost


def _root(gram: Float[Tensor, "rank rank"]) -> Float[Tensor, "rank rank"]:
    """A matrix R with R^T R = the Gram matrix, which rounding may have left with negative eigenvalues."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return values.clamp_min(0).sqrt()[:, None] * vectors.T


def _efficacy(model: Model, edit: Edit, smaller: Edit) -> pd.DataFrame:
    rows = target_rows(model, [Continuation(each.text, each.target, space=each.space) for each in edit.requests])
    frame = pd.DataFrame([(each.text, each.target) for each in edit.requests], columns=["prompt", "target"])
    for name, applied in (("whole", edit), ("cut", smaller)):
        with applied.applied(model):
            found = dict(score_targets(model, rows, target_log_probabilities))
        frame[name] = [found[i].mean().exp().item() for i in range(len(rows))]
    return frame
