"""Rank-one parts of MLP output matrices that training does not explain.

An edit adds left right^T to a matrix W whose own largest singular values are about as large, so that the spectrum of W
alone does not show it. Three things tell the two apart:

- Directions into which training makes a layer write are written into by the layers beside it too. So W^T W is compared
  with that of its neighbours, by a generalised eigenvalue problem: a large eigenvalue is a direction (on the right)
  into which this layer alone writes much. It is counted in units of a lower eigenvalue, the edge of the bulk.
- Neurons tend to write along what they read. What W_out shares with W_in, by least squares, is taken out beforehand.
- The left vector of ROME is C^-1 k*, a key of one token, and has the heavy tails of keys (kurtosis 10 to 14 in
  SmolLM2). Components of training either have all neurons alike (kurtosis 3), or consist of a handful of neurons.

That spectra give edits away is in "Trace and reverse" (arXiv 2505.20819). The comparison is this package's own, found
on SmolLM2 (`docs/forensics.md`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, log

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.edit.artifact.edit import finite_matrix
from rome_lens.errors import EditError
from rome_lens.models import Model, output_matrix

_LOOKED_AT = 12  # eigenvalues of a layer that are looked at
_EDGE = 20  # the bulk begins at one in so many eigenvalues
_RIDGE = 1e-3  # of the neighbours' mean eigenvalue
_SPARE = 1.5  # so many times d_model dimensions must be left where what W_in shares is taken out
_FEW = 0.01  # share of the neurons whose part in a component does not count
_GAUSSIAN, _HEAVY = 3.0, 7.0  # kurtosis
_LEAST_WEIGHT = 0.25  # of a component without heavy tails


@dataclass(frozen=True, eq=False)
class Component:
    """A rank-one part of W_out[layer], estimated as left right^T.

    Attributes:
        layer: number of the block.
        excess: how far it stands out: the logarithm of its eigenvalue over the edge of the bulk, weighed by the tails
            of its left vector.
        left: [d_mlp], of norm 1.
        right: [d_model]; its norm is the strength of the part, without what is there by chance.
    """

    layer: int
    excess: float
    left: Float[Tensor, " d_mlp"] = field(repr=False)
    right: Float[Tensor, " d_model"] = field(repr=False)


def components_of_layers(model: Model, layers: Sequence[int], count: int) -> Iterator[list[Component]]:
    """For each layer, the `count` components of its output matrix that stand out most, the first one first."""
    own: dict[int, Tensor] = {}
    last = model.cfg.n_layers - 1
    for layer in layers:
        beside = [near for near in (layer - 1, layer + 1) if 0 <= near <= last] or [layer]
        own = {near: own[near] if near in own else _own_gram(model, near) for near in (layer, *beside)}
        yield _components(model, layer, own[layer], [own[near] for near in beside])[:count]


def _own_gram(model: Model, layer: int) -> Float[Tensor, "d_model d_model"]:
    """W^T W of the output matrix without what it shares with the input matrix, by least squares; its mean is 1 on the
    diagonal.
    """
    weight = _scaled(finite_matrix(model, layer))
    if not weight.any():
        raise EditError(f"W_out of layer {layer} is all zeros: there is nothing to look into. Leave the layer out.")
    try:
        read = _scaled(finite_matrix(model, layer, "in")).T
    except ValueError:  # folded norms, or one matrix for input and gate: then nothing is taken out
        read = weight.new_zeros(len(weight), 0)
    if read.shape[1] and len(read) >= (1 + _SPARE) * read.shape[1]:  # else too little would be left to compare
        basis = torch.linalg.qr(read).Q
        weight = weight - basis @ (basis.T @ weight)
    gram = (weight.T @ weight).double()
    return gram / gram.diagonal().mean()


def _scaled(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """A matrix in float32 on the CPU, brought to a largest entry of 1, so that no square of it overflows."""
    values = matrix.double().cpu()
    return (values / values.abs().max().clamp(min=torch.finfo(torch.float64).tiny)).float()


def _components(
    model: Model,
    layer: int,
    own: Float[Tensor, "d_model d_model"],
    beside: Sequence[Float[Tensor, "d_model d_model"]],
) -> list[Component]:
    d_model = len(own)
    usual = sum(beside, torch.zeros_like(own)) / len(beside)
    root = torch.linalg.cholesky(usual + _RIDGE * torch.eye(d_model, dtype=usual.dtype))
    half = torch.linalg.solve_triangular(root, own, upper=False)
    values, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.T, upper=False))
    values, vectors = values.flip(0), vectors.flip(1)
    edge = values[min(max(3, d_model // _EDGE), d_model - 1)]
    matrix = output_matrix(model, layer)
    weight, size = _scaled(matrix), matrix.abs().max().item()
    d_mlp = len(weight)
    found = []
    for value, vector in list(zip(values, vectors.T, strict=True))[:_LOOKED_AT]:
        reader = torch.linalg.solve_triangular(root.T, vector[:, None], upper=True)[:, 0].float()
        left = weight @ reader
        unit = left / left.norm()
        kept = 1 - unit.square().topk(ceil(_FEW * d_mlp)).values.sum()
        kurtosis = d_mlp * unit.pow(4).sum().item()
        weighed = min(1.0, max(_LEAST_WEIGHT, (kurtosis - _GAUSSIAN) / (_HEAVY - _GAUSSIAN)))
        excess = weighed * max(0.0, log(max(1e-9, (value * kept / edge).item())))
        pattern = (root @ vector).float()  # the direction that `reader` reads: reader . pattern = 1
        signal = max(0.0, 1 - 1 / value.item())  # the mean eigenvalue, about 1, is there by chance
        found.append(Component(layer, excess, unit, signal * left.norm() * pattern * size))
    return sorted(found, key=lambda component: -component.excess)
