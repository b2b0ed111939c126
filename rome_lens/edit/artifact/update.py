"""Low-rank updates of MLP matrices as data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.errors import EditError
from rome_lens.models import MlpMatrix


@dataclass(frozen=True, eq=False)
class Update:
    """W[layer] += left @ right, for one matrix of the layer's MLP.

    Attributes:
        layer: number of the block.
        left: [d_in, rank], float32, on the CPU; d_in is d_mlp for the output matrix.
        right: [rank, d_out], float32, on the CPU; d_out is d_model for the output matrix.
        made_for: SHA-256 of the matrix that it was computed for; "" if unknown.
        matrix: "out" is the output matrix W_out [d_mlp, d_model] (Llama's down_proj), "in" the input matrix W_in
            [d_model, d_mlp] (up_proj), "gate" the gate W_gate of a gated MLP [d_model, d_mlp] (gate_proj).
    """

    layer: int
    left: Float[Tensor, "d_in rank"] = field(repr=False)
    right: Float[Tensor, "rank d_out"] = field(repr=False)
    made_for: str = ""
    matrix: MlpMatrix = "out"

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or not isinstance(self.made_for, str):
            raise TypeError(f"An update of layer {self.layer!r} made for {self.made_for!r}: expected an int and a str.")
        if self.layer < 0:
            raise ValueError(f"An update of layer {self.layer}: layers are counted from 0.")
        if self.matrix not in get_args(MlpMatrix):
            raise ValueError(
                f"An update of the matrix {self.matrix!r} of layer {self.layer}, expected one of "
                f"{', '.join(get_args(MlpMatrix))}."
            )
        factors = (self.left, self.right)
        if not all(isinstance(factor, Tensor) for factor in factors):
            found = " and ".join(type(factor).__name__ for factor in factors)
            raise TypeError(f"left and right of layer {self.layer} are {found}, expected tensors.")
        fit = all(factor.ndim == 2 and factor.numel() for factor in factors) and len(self.right) == self.left.shape[1]
        if not fit or any(factor.dtype != torch.float32 for factor in factors):
            found = " and ".join(f"{list(factor.shape)} in {factor.dtype}" for factor in factors)
            raise ValueError(
                f"The factors of layer {self.layer} are {found}, expected float32 matrices [d_in, rank] and "
                "[rank, d_out]."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(d_in, d_out)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def place(self) -> str:
        """Which matrix it is for, in words."""
        return f"layer {self.layer}" + ("" if self.matrix == "out" else f" (matrix {self.matrix!r})")

    @property
    def rank(self) -> int:
        """The number of columns of `left`."""
        return self.left.shape[1]

    def added_to(self, weight: Float[Tensor, "d_in d_out"]) -> Float[Tensor, "d_in d_out"]:
        """The weight with the update, computed in float32, in the weight's dtype and on its device."""
        with torch.autocast(weight.device.type, enabled=False):
            change = self.left.to(weight.device) @ self.right.to(weight.device)
            return (weight.float() + change).to(weight.dtype)

    def adds_the_same_as(self, other: "Update") -> bool:
        """Whether both add the same to the same matrix."""
        same_matrix = (self.layer, self.matrix) == (other.layer, other.matrix)
        return same_matrix and torch.equal(self.left, other.left) and torch.equal(self.right, other.right)

    def negated(self) -> "Update":
        """The update that undoes this one, up to rounding."""
        return replace(self, left=-self.left, made_for="")

    def joined(self, later: Sequence["Update"]) -> "Update":
        """Updates of one matrix as one whose rank is their sum, with the `made_for` of this one."""
        if not later:
            return self
        left = torch.cat([self.left, *(update.left for update in later)], dim=1)
        return replace(self, left=left, right=torch.cat([self.right, *(update.right for update in later)]))


MatrixPlace = TypeVar("MatrixPlace", int, tuple[int, MlpMatrix])
"""A matrix: the layer, if it is the output matrix, or (layer, matrix)."""


def layer_and_matrix(place: MatrixPlace) -> tuple[int, MlpMatrix]:
    """The layer, and which matrix of its MLP."""
    return place if isinstance(place, tuple) else (place, "out")


def least_rank(
    left: Float[Tensor, "d_in rank"], right: Float[Tensor, "rank d_out"]
) -> tuple[Float[Tensor, "d_in _"], Float[Tensor, "_ d_out"]]:
    """Factors of the same product; where they are of more rank than it can have, the product and an identity."""
    if left.shape[1] <= min(left.shape[0], right.shape[1]):
        return left, right
    product = left @ right
    wide = left.shape[0] < right.shape[1]
    return (torch.eye(len(left)).to(left), product) if wide else (product, torch.eye(right.shape[1]).to(right))


def of_rank(
    left: Float[Tensor, "d_in _"], right: Float[Tensor, "_ d_out"], rank: int
) -> tuple[Float[Tensor, "d_in rank"], Float[Tensor, "rank d_out"]]:
    """Factors of the same product, filled up with zeros to a rank that is no smaller."""
    missing = rank - len(right)
    return torch.nn.functional.pad(left, (0, missing)), torch.nn.functional.pad(right, (0, 0, 0, missing))


def one_for_each_matrix(updates: Iterable[Update]) -> tuple[Update, ...]:
    """The updates in their order, with those of one matrix joined.

    Raises:
        EditError: they are for MLPs of different sizes.
    """
    by_matrix: dict[tuple[int, MlpMatrix], list[Update]] = {}
    shapes: dict[tuple[int, int], str] = {}
    for update in updates:
        shapes.setdefault(update.shape if update.matrix == "out" else update.shape[::-1], update.place)
        if len(shapes) > 1:
            found = " and ".join(f"{shape} ({place})" for shape, place in shapes.items())
            raise EditError(
                f"The updates are for matrices of the shapes {found}, expected one shape: that of one model's MLPs. "
                "Put together only edits of one model."
            )
        by_matrix.setdefault((update.layer, update.matrix), []).append(update)
    return tuple(first.joined(later) for first, *later in by_matrix.values())
