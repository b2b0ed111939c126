"""Low-rank updates of MLP output matrices as data."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.errors import EditError


@dataclass(frozen=True, eq=False)
class Update:
    """W_out[layer] += left @ right.

    Attributes:
        layer: number of the block.
        left: [d_mlp, rank], float32, on the CPU.
        right: [rank, d_model], float32, on the CPU.
        made_for: SHA-256 of the matrix that it was computed for; "" if unknown.
    """

    layer: int
    left: Float[Tensor, "d_mlp rank"] = field(repr=False)
    right: Float[Tensor, "rank d_model"] = field(repr=False)
    made_for: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or not isinstance(self.made_for, str):
            raise TypeError(f"An update of layer {self.layer!r} made for {self.made_for!r}: expected an int and a str.")
        if self.layer < 0:
            raise ValueError(f"An update of layer {self.layer}: layers are counted from 0.")
        factors = (self.left, self.right)
        if not all(isinstance(factor, Tensor) for factor in factors):
            found = " and ".join(type(factor).__name__ for factor in factors)
            raise TypeError(f"left and right of layer {self.layer} are {found}, expected tensors.")
        fit = all(factor.ndim == 2 and factor.numel() for factor in factors) and len(self.right) == self.left.shape[1]
        if not fit or any(factor.dtype != torch.float32 for factor in factors):
            found = " and ".join(f"{list(factor.shape)} in {factor.dtype}" for factor in factors)
            raise ValueError(
                f"The factors of layer {self.layer} are {found}, expected float32 matrices [d_mlp, rank] and "
                "[rank, d_model]."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(d_mlp, d_model)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The number of columns of `left`."""
        return self.left.shape[1]

    def added_to(self, weight: Float[Tensor, "d_mlp d_model"]) -> Float[Tensor, "d_mlp d_model"]:
        """The weight with the update, computed in float32, in the weight's dtype and on its device."""
        with torch.autocast(weight.device.type, enabled=False):
            change = self.left.to(weight.device) @ self.right.to(weight.device)
            return (weight.float() + change).to(weight.dtype)

    def negated(self) -> "Update":
        """The update that undoes this one, up to rounding."""
        return Update(self.layer, -self.left, self.right)

    def joined(self, later: "Update") -> "Update":
        """Two updates of one matrix as one whose rank is their sum, with the `made_for` of this one."""
        left, right = torch.cat([self.left, later.left], dim=1), torch.cat([self.right, later.right])
        return Update(self.layer, left, right, self.made_for)


def one_for_each_layer(updates: Iterable[Update]) -> tuple[Update, ...]:
    """The updates in their order, with those of one layer joined.

    Raises:
        EditError: their shapes differ.
    """
    by_layer: dict[int, Update] = {}
    shapes: dict[tuple[int, int], int] = {}
    for update in updates:
        before = by_layer.get(update.layer)
        shapes.setdefault(update.shape, update.layer)
        if len(shapes) > 1:
            found = " and ".join(f"{shape} (layer {layer})" for shape, layer in shapes.items())
            raise EditError(
                f"The updates are for matrices of the shapes {found}, expected one shape: that of one model's MLPs. "
                "Put together only edits of one model."
            )
        by_layer[update.layer] = before.joined(update) if before else update
    return tuple(by_layer.values())
