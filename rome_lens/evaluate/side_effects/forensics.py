"""Forensics: recovers low-rank edits from the difference of two models."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.edit.artifact.update import Update
from rome_lens.errors import warn
from rome_lens.models import Model, output_matrix
from rome_lens.storage import digest

_PRECISIONS = (torch.bfloat16, torch.float16, torch.float32)


@checked
def weight_changes(original: Model, suspect: Model) -> pd.DataFrame:
    """The parameters that differ between two models, with the size of the change and of rounding errors.

    Returns:
        A row for each parameter that differs: parameter (its name), changed (share of the entries that differ),
        relative_change (norm of the difference over the norm of the original), relative_rounding (the same for the
        error of rounding to the suspect's precision; a change of about this size is rounding alone).

    Raises:
        ValueError: the models have different parameters.
    """
    rows = []
    for name in _changed(original, suspect):
        before, after = (_values(model, name) for model in (original, suspect))
        norm, change = before.norm(), after - before
        changed = (change != 0).double().mean()
        rows.append((name, *map(float, (changed, change.norm() / norm, _rounding_error(after).norm() / norm))))
    return pd.DataFrame(rows, columns=["parameter", "changed", "relative_change", "relative_rounding"])


@checked
def recover_updates(
    original: Model, suspect: Model, *, tolerance: float = 2.0, progress: bool = True
) -> tuple[Update, ...]:
    """The updates of MLP output matrices that lead from one model to the other, without rounding noise.

    An edit that was rounded to the suspect's precision is a low-rank update plus an independent error in each entry, of
    known size (the spacing of floating-point numbers over the square root of 12). The singular values of such errors
    stay below an edge: the largest norm of their standard deviations along a row, plus the largest along a column
    (Bandeira and van Handel 2016, arXiv 1408.6185, Theorem 1.1); if all are equal it is the Marchenko-Pastur edge. The
    singular values above `tolerance` times this edge are the update. The precision is inferred from the values, so
    that it is found also if a bfloat16 model was loaded in float32.

    Fine-tuning shows as updates of high rank (`update.rank`, up to d_model). So does an edit if `original` is a more
    coarsely rounded copy than the model that was edited. An update smaller than rounding is not found.

    Args:
        original: Model as it should be; left unchanged.
        suspect: Model with the same parameters, perhaps in another precision; left unchanged.
        tolerance: 2 allows for four consecutive roundings, whose errors add up as a square root.

    Returns:
        An update for each layer whose matrix differs by more than rounding; its left factor has orthonormal columns,
        the strongest first. Adding it to the original gives the suspect, and adding `update.negated()` to the suspect
        the original, both up to rounding. An empty tuple if no matrix differs by more than rounding.

    Warns:
        UserWarning: other parameters differ too, which these updates do not include; `weight_changes` lists them.

    Raises:
        ValueError: the models have different parameters.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}, expected a number above 0.")
    changed = _changed(original, suspect)
    layers = {output_matrix(original, layer).data_ptr(): layer for layer in range(original.cfg.n_layers)}
    parameters = original.named_parameters()
    names = {name: layers[p.data_ptr()] for name, p in parameters if p.data_ptr() in layers}
    if others := [name for name in changed if name not in names]:
        warn(
            f"{len(others)} parameters differ that are no MLP output matrix ({', '.join(others[:3])}...). The updates "
            "leave them out; see weight_changes(original, suspect).",
            UserWarning,
        )
    updates = []
    matrices = [name for name in changed if name in names]
    for name in tqdm(matrices, desc="recover updates", unit="layer", disable=not progress):
        before, after = (output_matrix(model, names[name]).cpu().double() for model in (original, suspect))
        left, values, right = torch.linalg.svd(after - before, full_matrices=False)
        rank = int((values > tolerance * _noise_edge(_rounding_error(after))).sum())
        if rank:
            left, right = left[:, :rank].float(), (values[:rank, None] * right[:rank]).float()
            made_for = digest(output_matrix(original, names[name]))
            updates.append(Update(names[name], left.contiguous(), right.contiguous(), made_for))
    return tuple(updates)


def _changed(original: Model, suspect: Model) -> list[str]:
    """Names of the parameters that differ."""
    ours, theirs = dict(original.named_parameters()), dict(suspect.named_parameters())
    shapes = [{name: tuple(p.shape) for name, p in parameters.items()} for parameters in (ours, theirs)]
    if odd := sorted(name for name, _ in shapes[0].items() ^ shapes[1].items()):
        raise ValueError(
            f"{original.cfg.model_name} and {suspect.cfg.model_name} have different parameters ({odd[0]}, and "
            f"{len(odd) - 1} more), expected one model in two states. Load both in the same way."
        )
    return [name for name in ours if not torch.equal(_values(original, name), _values(suspect, name))]


def _values(model: Model, name: str) -> Float[Tensor, "*shape"]:
    """A parameter in float64, on the CPU."""
    return dict(model.named_parameters())[name].detach().cpu().double()


def _rounding_error(weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standard deviation of each entry's rounding error, in the coarsest precision that represents all entries."""
    holding = (dtype for dtype in _PRECISIONS if torch.equal(weight.to(dtype).double(), weight))
    info = torch.finfo(next(holding, torch.float64))
    power = torch.frexp(weight.abs().clamp(min=info.tiny)).exponent - 1  # 2^power <= |entry| < 2^(power + 1)
    return torch.ldexp(torch.full_like(weight, info.eps / 12**0.5), power)


def _noise_edge(deviations: Float[Tensor, "row column"]) -> float:
    """Bound on the largest singular value of independent errors with these standard deviations (`recover_updates`)."""
    return (deviations.norm(dim=1).max() + deviations.norm(dim=0).max()).item()
