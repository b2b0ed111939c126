"""What was done to a model's weights: low-rank edits found in the difference of two models."""

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
    """Which parameters differ, and by how much more than rounding.

    Returns:
        A row for each parameter with a differing entry: parameter (its name), changed (share of the entries that
        differ), relative_change (norm of the difference over the original's norm), relative_rounding (the same for
        the error that rounding to the suspect's precision makes: a change of about this size is no more than that).

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
    """The updates of MLP output matrices that lead from one model to the other, with the rounding noise left out.

    An edit that was rounded to the suspect's precision is its low-rank update plus one error for each entry, of known
    size (an entry's spacing over the square root of 12). The singular values of such errors stay below an edge: the
    largest norm of their standard deviations along a row, plus the largest along a column (Bandeira and van Handel
    2016, arXiv 1408.6185, Theorem 1.1); where all are alike it is the Marchenko-Pastur edge. The update is what stands
    out of `tolerance` times this edge. The precision is read off the values, so it is found also if a bfloat16 model
    was loaded in float32.

    Fine-tuning is not hidden: its updates come back with the many ranks that they have (`update.left.shape[1]`, up
    to d_model). So does an edit if the original given here is a more coarsely rounded copy than the one that was
    edited. An update smaller than the rounding is lost.

    Args:
        original: the model as it should be; it is not changed.
        suspect: a model with the same parameters, perhaps in another precision; it is not changed.
        tolerance: 2 allows for four roundings, one after the other; their errors add up as a square root.
        progress: shows a bar.

    Returns:
        An update for each layer whose matrix differs by more than rounding, its left factor with orthonormal columns,
        the strongest first. Adding it to the original gives the suspect, adding `update.negated()` to the suspect the
        original, both up to rounding. None if the matrices are the same.

    Warns:
        UserWarning: other parameters differ too, which an update cannot tell; `weight_changes` lists them.

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
    """The names of the parameters in which any entry differs."""
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
    """The standard deviation of each entry's rounding error, for the coarsest precision that holds all entries."""
    holding = (dtype for dtype in _PRECISIONS if torch.equal(weight.to(dtype).double(), weight))
    info = torch.finfo(next(holding, torch.float64))
    power = torch.frexp(weight.abs().clamp(min=info.tiny)).exponent - 1  # 2^power <= |entry| < 2^(power + 1)
    return torch.ldexp(torch.full_like(weight, info.eps / 12**0.5), power)


def _noise_edge(deviations: Float[Tensor, "row column"]) -> float:
    """What the largest singular value of independent errors with these standard deviations hardly exceeds."""
    return (deviations.norm(dim=1).max() + deviations.norm(dim=0).max()).item()
