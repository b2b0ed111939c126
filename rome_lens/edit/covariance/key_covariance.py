"""C = E[k k^T], the second moment of an MLP's keys on ordinary text (paper section 3.1, Eq. 2; appendix E.1)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import check_whole, checked_result
from rome_lens.edit.artifact.written import writings
from rome_lens.edit.covariance.diagnostics import (
    CovarianceReport,
    condition_number,
    effective_rank,
    factor,
    oas_intensity,
    solved,
)
from rome_lens.errors import CovarianceError
from rome_lens.models import Model, fingerprint_cosine, in_float64, output_matrix
from rome_lens.storage import check_facts, check_shapes, foreign, load_tensors, save_tensors

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
_LEAST_COSINE = 0.99  # between a model's fingerprint and the stored one
_LEAST_COSINE_EDITED = 0.5  # edits of earlier layers move the keys; those of another model have nothing in common


@checked_result
@dataclass(frozen=True, eq=False)
class KeyCovariance:
    """The uncentred second moment of a layer's keys, and its provenance.

    Attributes:
        second_moment: [d_mlp, d_mlp], float32, on the CPU: the mean of k k^T over `tokens` tokens.
        layer: number of the block; its MLP's inner activations are the keys.
        tokens: number of keys that it is the mean of.
        model: name of the model.
        corpus: name of the text.
        dtype: dtype of the model that the keys were read from.
        fingerprint: [16, d_mlp] keys of a fixed row of tokens, by which the model is recognised; None if unknown.
        half_difference, half_cosine: agreement of two halves of the text; see CovarianceReport.
        shrinkage: how far it was shrunk; see `shrunk`.
    """

    second_moment: Float[Tensor, "d_mlp d_mlp"] = field(repr=False)
    layer: int
    tokens: int
    model: str = ""
    corpus: str = ""
    dtype: str = ""
    fingerprint: Float[Tensor, "token d_mlp"] | None = field(default=None, repr=False)
    half_difference: float | None = None
    half_cosine: float | None = None
    shrinkage: float = 0.0

    @classmethod
    def from_matrix(
        cls, second_moment: Float[Tensor, "d_mlp d_mlp"], *, layer: int, tokens: int, model: str = "", corpus: str = ""
    ) -> "KeyCovariance":
        """A KeyCovariance from a matrix that was computed elsewhere.

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

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or another process gets: not the factors, which are large and may be on a GPU that it lacks."""
        return {name: value for name, value in vars(self).items() if name not in ("_factors", "_eigen")}

    @cached_property
    def _factors(self) -> dict[torch.device, Float[Tensor, "d_mlp d_mlp"] | None]:
        return {}

    def _factor_on(self, device: torch.device) -> Float[Tensor, "d_mlp d_mlp"] | None:
        """C's Cholesky factor, made once; on the CPU if the device has no room for it."""
        if device not in self._factors:
            try:
                self._factors[device] = factor(self.second_moment.to(device))
            except torch.OutOfMemoryError:
                self._factors[device] = self._factor_on(self.second_moment.device)
        return self._factors[device]

    @cached_property
    def _eigen(self) -> tuple[Float[Tensor, " d_mlp"], Float[Tensor, "d_mlp d_mlp"]]:
        values, vectors = torch.linalg.eigh(self.second_moment.double())
        return values, vectors

    def directions_below(self, threshold: float) -> Float[Tensor, "d_mlp n"]:
        """The eigenvectors, in float64, whose eigenvalues are below the threshold: where ordinary keys hardly reach."""
        values, vectors = self._eigen
        return vectors[:, values < threshold]

    @cached_property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue; 4.5e15, the most, means singular.

        Entries are stored in float32, so beyond 8e6 the smallest eigenvalues are rounding.
        """
        made = next(iter(self._factors), self.second_moment.device)
        return condition_number(self._factor_on(made))

    def solve(self, key: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_mlp"]:
        """C^-1 k for one key or several (Cholesky in float64, on their device if it has room), in the keys' dtype.

        Raises:
            CovarianceError: the covariance is singular.
        """
        columns = in_float64(key.detach()).reshape(-1, key.shape[-1]).T
        lower = self._lower(columns.device)
        return solved(lower, columns.to(lower.device)).T.reshape(key.shape).to(key)

    def whitened(self, key: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_mlp"]:
        """L^-1 k for C = L L^T, in float64: coordinates in which products are k C^-1 k', for one key or several.

        Raises:
            CovarianceError: the covariance is singular.
        """
        columns = in_float64(key.detach()).reshape(-1, key.shape[-1]).T
        lower = self._lower(columns.device)
        found = torch.linalg.solve_triangular(lower, columns.to(lower.device), upper=False)
        return found.T.reshape(key.shape).to(key.device)

    def _lower(self, device: torch.device) -> Float[Tensor, "d_mlp d_mlp"]:
        """C's Cholesky factor. Raises CovarianceError if there is none."""
        lower = self._factor_on(device)
        if lower is None:
            width = len(self.second_moment)
            raise CovarianceError(
                f"The covariance of layer {self.layer} is singular: {self.tokens} tokens for {width} dimensions. "
                f"Collect it from more text (at least {10 * width} tokens), or make it invertible: covariance.shrunk()."
            )
        return lower

    def report(self) -> CovarianceReport:
        """Diagnostics: effective rank, condition number, and agreement of two halves of the text."""
        return CovarianceReport(
            self.tokens,
            len(self.second_moment),
            effective_rank(torch.linalg.eigvalsh(self.second_moment.double())),
            self.condition_number,
            self.half_difference,
            self.half_cosine,
            self.shrinkage,
        )

    def shrunk(self, intensity: float | None = None) -> "KeyCovariance":
        """A copy with (1 - a) C + a tr(C)/d I in place of C, which is invertible even if tokens are few.

        Args:
            intensity: a, from 0 to 1; None: oracle approximating shrinkage (Chen et al. 2010), which tends to 0 as
                tokens grow. It assumes independent keys, which those of one text are not, so a somewhat larger
                `intensity` is reasonable.

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

        The model is recognised by its keys for a fixed row of tokens: another dtype, a folded layer norm or an edit
        pass, and so do many edits that are applied; another model of the same shape does not.
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
        if self.fingerprint is not None:
            cosine = fingerprint_cosine(model, layer, self.fingerprint)
            least = _LEAST_COSINE_EDITED if writings(model) else _LEAST_COSINE
            if not cosine > least:
                raise CovarianceError(
                    f"The covariance was collected on another model ({self.model}): this model's keys differ from "
                    f"those it was made of (cosine {cosine:.3f}, expected more than {least}). Collect it on "
                    f"{model.cfg.model_name}."
                )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes a safetensors file with the lower triangle, the fingerprint and the other attributes.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        tensors, facts = self.parts()
        save_tensors(path, tensors, kind=_KIND, facts=facts, overwrite=overwrite)

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file keeps: tensors, the lower triangle among them, and the other attributes as plain values."""
        rows, columns = torch.tril_indices(*self.second_moment.shape)
        tensors = {"lower_triangle": self.second_moment[rows, columns]}
        tensors |= {} if self.fingerprint is None else {"probe": self.fingerprint}
        return tensors, {name: getattr(self, name) for name in _FACTS}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "KeyCovariance":
        """Reads a file that `save` wrote."""
        return cls.of_parts(path, *load_tensors(path, kind=_KIND, facts=_FACTS))

    @classmethod
    def of_parts(
        cls, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> "KeyCovariance":
        """What `parts` took apart. Raises FormatError, which names `path`, if it does not fit together."""
        check_facts(Path(path), facts, _FACTS)
        with foreign(path, "holds no whole covariance", "Collect it again."):
            numbers = tensors["lower_triangle"].numel()
            width = int((2 * numbers) ** 0.5)
            if not width or width * (width + 1) // 2 != numbers:
                raise ValueError(f"{numbers} numbers are no lower triangle")
            check_shapes(tensors, lower_triangle=(numbers,), **({"probe": (None, width)} if "probe" in tensors else {}))
            check_whole(least=0, layer=facts["layer"])
            check_whole(tokens=facts["tokens"])
            if not 0 <= facts["shrinkage"] <= 1:
                raise ValueError(f"shrinkage is {facts['shrinkage']}, expected a number from 0 to 1")
        triangle, matrix = tensors["lower_triangle"], torch.zeros(width, width)
        rows, columns = torch.tril_indices(width, width)
        matrix[rows, columns] = triangle
        matrix[columns, rows] = triangle
        return cls(matrix, fingerprint=tensors.get("probe"), **facts)
