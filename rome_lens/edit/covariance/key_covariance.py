"""C = E[k kT]: how an MLP's keys are spread over ordinary text (paper section 3.1, Eq. 2 and appendix E.1)."""

import os
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import checked
from rome_lens.edit.covariance.diagnostics import (
    CovarianceReport,
    condition_number,
    effective_rank,
    factor,
    oas_intensity,
)
from rome_lens.errors import CovarianceError, FormatError
from rome_lens.models import Model, output_matrix
from rome_lens.models.identity import probe_cosine
from rome_lens.storage import load_tensors, save_tensors

_KIND = "rome_lens key covariance 3"
_FACTS = {
    "layer": int,
    "tokens": int,
    "model": str,
    "corpus": str,
    "dtype": str,
    "half_difference": float | None,
    "half_cosine": float | None,
    "shrinkage": float,
}
_PROBE_COSINE = 0.99


@checked
@dataclass(frozen=True, eq=False)
class KeyCovariance:
    """The uncentred second moment of a layer's keys, and where it came from.

    Attributes:
        second_moment: [d_mlp, d_mlp], float32, on the CPU: the mean of k kT over `tokens` tokens.
        layer: the block whose MLP's inner activations the keys are.
        tokens: how many keys it is the mean of.
        model: name of the model.
        corpus: what text it was.
        dtype: of the model when the keys were gathered.
        probe: [16, d_mlp] keys of a fixed row of tokens, by which a model is recognised; None if not known.
        half_difference, half_cosine: how far two halves of the text agree; see CovarianceReport.
        shrinkage: how far it was shrunk; see `shrunk`.
    """

    second_moment: Float[Tensor, "d_mlp d_mlp"] = field(repr=False)
    layer: int
    tokens: int
    model: str = ""
    corpus: str = ""
    dtype: str = ""
    probe: Float[Tensor, "probe d_mlp"] | None = field(default=None, repr=False)
    half_difference: float | None = None
    half_cosine: float | None = None
    shrinkage: float = 0.0

    @classmethod
    def from_matrix(
        cls, second_moment: Float[Tensor, "d_mlp d_mlp"], *, layer: int, tokens: int, model: str = "", corpus: str = ""
    ) -> "KeyCovariance":
        """A covariance that was computed elsewhere.

        Raises:
            CovarianceError: the matrix is not square, not symmetric or not finite.
        """
        matrix = second_moment.detach().cpu().float()
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise CovarianceError(f"The second moment has the shape {tuple(matrix.shape)}, expected [d_mlp, d_mlp].")
        if not matrix.isfinite().all():
            raise CovarianceError("The second moment has entries that are not finite. Collect it again.")
        if not torch.allclose(matrix, matrix.T, rtol=1e-3, atol=1e-5 * matrix.abs().max().item()):
            raise CovarianceError("The second moment is not symmetric, expected E[k kT]. Was another matrix meant?")
        return cls(matrix, layer, tokens, model, corpus, str(second_moment.dtype).removeprefix("torch."))

    @cached_property
    def _factor(self) -> Float[Tensor, "d_mlp d_mlp"]:
        lower = factor(self.second_moment)
        if lower is None:
            width = len(self.second_moment)
            raise CovarianceError(
                f"The covariance of layer {self.layer} is singular: {self.tokens} tokens for {width} dimensions. "
                f"Collect it from more text (at least {10 * width} tokens), or make it invertible: covariance.shrunk()."
            )
        return lower

    @cached_property
    def _eigenvalues(self) -> Float[Tensor, " d_mlp"]:
        return torch.linalg.eigvalsh(self.second_moment.double())

    @cached_property
    def _eigen(self) -> tuple[Float[Tensor, " d_mlp"], Float[Tensor, "d_mlp d_mlp"]]:
        values, vectors = torch.linalg.eigh(self.second_moment.double())
        return values, vectors

    def directions_below(self, threshold: float) -> Float[Tensor, "d_mlp n"]:
        """The eigenvectors, in float64, whose eigenvalues are below the threshold: where ordinary keys hardly reach."""
        values, vectors = self._eigen
        return vectors[:, values < threshold]

    @property
    def condition_number(self) -> float:
        """The largest over the smallest eigenvalue, at most 4.5e15, which stands for a singular C.

        The entries are float32: beyond 8e6 the smallest eigenvalues are rounding.
        """
        return condition_number(self._eigenvalues)

    def solve(self, key: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_mlp"]:
        """C^-1 k, of one key or several, by a Cholesky factorisation in float64, in the key's dtype and on its device.

        Raises:
            CovarianceError: the covariance is singular.
        """
        columns = key.detach().cpu().double().reshape(-1, key.shape[-1]).T
        return torch.cholesky_solve(columns, self._factor).T.reshape(key.shape).to(key)

    def report(self) -> CovarianceReport:
        """How well it is determined: effective rank, condition, and the agreement of two halves of its text."""
        return CovarianceReport(
            self.tokens,
            len(self.second_moment),
            effective_rank(self._eigenvalues),
            self.condition_number,
            self.half_difference,
            self.half_cosine,
            self.shrinkage,
        )

    def shrunk(self, intensity: float | None = None) -> "KeyCovariance":
        """(1 - a) C + a tr(C)/d I: one that can be solved with where tokens are few. This one stays as it is.

        Args:
            intensity: a, from 0 to 1; None: oracle approximating shrinkage (Chen et al. 2010), which falls to 0 as
                tokens grow. It takes keys to be independent, which those of one text are not: an `intensity` somewhat
                larger is no mistake.

        Raises:
            ValueError: the intensity is not from 0 to 1.
        """
        chosen = oas_intensity(self.second_moment, self.tokens) if intensity is None else intensity
        if not 0 <= chosen <= 1:
            raise ValueError(f"intensity is {intensity}, expected a number from 0 to 1.")
        mean = self.second_moment.diagonal().mean()
        matrix = (1 - chosen) * self.second_moment + chosen * mean * torch.eye(len(self.second_moment))
        return replace(self, second_moment=matrix, shrinkage=1 - (1 - self.shrinkage) * (1 - chosen))

    def check(self, model: Model, layer: int) -> None:
        """Raises CovarianceError unless this is the covariance of that layer of that model.

        The model is recognised by its keys for a fixed row of tokens, so that another dtype, a folded layer norm or an
        edit do not matter, and another model of the same shape does.
        """
        width = output_matrix(model, layer).shape[0]
        if layer != self.layer:
            raise CovarianceError(
                f"The covariance is that of layer {self.layer}, but layer {layer} is to be edited. "
                f"Collect it with collect_covariance(model, layers=[{layer}], ...), or edit layer {self.layer}."
            )
        if width != len(self.second_moment):
            raise CovarianceError(
                f"The covariance is {len(self.second_moment)} wide ({self.model or 'unknown model'}), but the keys of "
                f"{model.cfg.model_name} are {width} wide. Collect it on this model."
            )
        if self.probe is not None:
            cosine = probe_cosine(model, layer, self.probe)
            if not cosine > _PROBE_COSINE:
                raise CovarianceError(
                    f"The covariance was collected on another model ({self.model}): this model's keys differ from "
                    f"those it was made of (cosine {cosine:.3f}, expected more than {_PROBE_COSINE}). Collect it on "
                    f"{model.cfg.model_name}."
                )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes a safetensors file: the lower triangle, the probe and the facts.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        rows, columns = torch.tril_indices(*self.second_moment.shape)
        triangle = self.second_moment[rows, columns]
        facts = {name: getattr(self, name) for name in _FACTS}
        tensors = {"lower_triangle": triangle} | ({} if self.probe is None else {"probe": self.probe})
        save_tensors(path, tensors, kind=_KIND, facts=facts, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "KeyCovariance":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FormatError: the file is damaged or is something else.
        """
        tensors, facts = load_tensors(path, kind=_KIND, facts=_FACTS)
        triangle = tensors.get("lower_triangle", torch.empty(0))
        width = int((2 * triangle.numel()) ** 0.5)
        if triangle.ndim != 1 or width * (width + 1) // 2 != triangle.numel() or triangle.dtype != torch.float32:
            raise FormatError(f"{path} holds no lower triangle of a covariance in float32. Collect it again.")
        matrix = torch.zeros(width, width)
        rows, columns = torch.tril_indices(width, width)
        matrix[rows, columns] = triangle
        matrix[columns, rows] = triangle
        return cls(matrix, probe=tensors.get("probe"), **facts)
