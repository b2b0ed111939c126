"""The editor network g of MEND (paper section 3.1 and 3.2, Eq. 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

_EPSILON = 1e-7


class EditorNetwork(nn.Module):
    """Maps the gradient's factors, each token's key and output gradient delta, to those of the edit.

    All layers share one network, as their matrices have the same shape; each layer has its own scale and offset in
    every hidden layer of the network, and its own step size. Key and delta are concatenated, and normalised by running
    means and standard deviations over all training tokens and layers (0 and 1 before any). The network is initialised
    to the identity, so that the untrained edit is a step of gradient descent.
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
        """The factors of the update of the `layer`-th matrix, with the step size: W += key.T @ delta."""
        values = self.normalised(torch.cat([key, delta], dim=-1))
        for part in self.parts:
            values = part(values, layer)
        key, delta = values.split(self.widths, dim=-1)
        return key, -self.step_sizes[layer] * delta

    @torch.no_grad()
    def observe(self, pairs: Sequence[tuple[Float[Tensor, "_ d_mlp"], Float[Tensor, "_ d_model"]]]) -> None:
        """Updates the running mean and standard deviation with more tokens (Chan, Golub and LeVeque 1983)."""
        new = torch.cat([torch.cat(pair, dim=-1) for pair in pairs])
        total = self.count + len(new)
        shift = new.mean(0) - self.mean
        self.squares += (new - new.mean(0)).square().sum(0) + shift.square() * self.count * len(new) / total
        self.mean += shift * len(new) / total
        self.count.copy_(total)

    def normalised(self, values: Float[Tensor, "token width"]) -> Float[Tensor, "token width"]:
        """The values minus their running mean, divided by their running standard deviation."""
        if self.count < 2:
            return values
        return (values - self.mean) / ((self.squares / (self.count - 1)).sqrt() + _EPSILON)


class _LowRankResidual(nn.Module):
    """z + relu(scale * (U V z + bias) + offset); U is initialised to zero, which makes it the identity."""

    def __init__(self, width: int, rank: int, layers: int, random: torch.Generator) -> None:
        super().__init__()
        self.outer = nn.Parameter(torch.zeros(width, rank))
        self.inner = nn.Parameter(torch.randn(rank, width, generator=random))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scales = nn.Parameter(torch.ones(layers, width))
        self.offsets = nn.Parameter(torch.zeros(layers, width))

    def forward(self, values: Float[Tensor, "token width"], layer: int) -> Float[Tensor, "token width"]:
        before = self.scales[layer] * (values @ self.inner.T @ self.outer.T + self.bias) + self.offsets[layer]
        return values + before.clamp(min=0)  # unlike relu, clamp has a gradient at 0, where training starts
