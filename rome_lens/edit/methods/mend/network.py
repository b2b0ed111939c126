"""The editor network g of MEND (paper section 3.1 and 3.2, Eq. 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

_EPSILON = 1e-7


class EditorNetwork(nn.Module):
    """Maps the factors of a gradient, key x and output gradient delta of each token, to those of the edit.

    One network serves all layers, as their matrices have one shape; each layer has a scale and an offset of its own in
    every part of the network, and a step size. Both factors are normalised by their running means and deviations
    (over all tokens and layers that were trained on; before the first they are 0 and 1) and go through the network as
    one vector. The network is the identity when it is made, so that the edit is then a step of gradient descent.
    """

    def __init__(
        self, widths: tuple[int, int], layers: int, *, rank: int, hidden_layers: int, step_size: float, seed: int
    ) -> None:
        super().__init__()
        self.widths = widths
        width = sum(widths)
        random = torch.Generator().manual_seed(seed)
        parts = [_LowRankResidual(width, min(rank, width), layers, random) for _ in range(hidden_layers + 1)]
        self.parts = nn.ModuleList(parts)
        self.step_sizes = nn.Parameter(torch.full((layers,), step_size))
        self.mean: Tensor
        self.squares: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))
        self.register_buffer("count", torch.zeros(1))

    def forward(
        self, key: Float[Tensor, "token d_mlp"], delta: Float[Tensor, "token d_model"], layer: int
    ) -> tuple[Float[Tensor, "token d_mlp"], Float[Tensor, "token d_model"]]:
        """The factors of the change of the `layer`-th matrix, step size included: W += key.T @ delta."""
        values = self.normalised(torch.cat([key, delta], dim=-1))
        for part in self.parts:
            values = part(values, layer)
        key, delta = values.split(self.widths, dim=-1)
        return key, -self.step_sizes[layer] * delta

    @torch.no_grad()
    def observe(self, pairs: Sequence[tuple[Float[Tensor, "_ d_mlp"], Float[Tensor, "_ d_model"]]]) -> None:
        """Adds tokens' factors to the running mean and deviation (Chan, Golub and LeVeque 1983)."""
        new = torch.cat([torch.cat(pair, dim=-1) for pair in pairs])
        total = self.count + len(new)
        shift = new.mean(0) - self.mean
        self.squares += (new - new.mean(0)).square().sum(0) + shift.square() * self.count * len(new) / total
        self.mean += shift * len(new) / total
        self.count.copy_(total)

    def normalised(self, values: Float[Tensor, "token width"]) -> Float[Tensor, "token width"]:
        """The values less their running mean, over their running deviation."""
        if self.count < 2:
            return values
        return (values - self.mean) / ((self.squares / (self.count - 1)).sqrt() + _EPSILON)


class _LowRankResidual(nn.Module):
    """z + relu(scale * (U V z + bias) + offset), with U at zero to begin with: the identity."""

    def __init__(self, width: int, rank: int, layers: int, random: torch.Generator) -> None:
        super().__init__()
        self.outer = nn.Parameter(torch.zeros(width, rank))
        self.inner = nn.Parameter(torch.randn(rank, width, generator=random))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scales = nn.Parameter(torch.ones(layers, width))
        self.offsets = nn.Parameter(torch.zeros(layers, width))

    def forward(self, values: Float[Tensor, "token width"], layer: int) -> Float[Tensor, "token width"]:
        before = self.scales[layer] * (values @ self.inner.T @ self.outer.T + self.bias) + self.offsets[layer]
        return values + before.clamp(min=0)  # unlike relu, it has a gradient at 0, where training begins
