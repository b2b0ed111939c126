"""C = E[k kT]: how an MLP's keys are spread over ordinary text (paper section 3.1, Eq. 2 and appendix E.1)."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from rome_lens.edit.key import mlp_keys
from rome_lens.errors import CovarianceError, FormatError
from rome_lens.files import load_tensors, save_tensors
from rome_lens.models import bos_token, check_layer, output_matrix
from rome_lens.tokens import pad, token_pieces

_KIND = "rome_lens key covariance 1"
_FACTS = {"layer": int, "tokens": int, "model": str, "corpus": str, "dtype": str, "sha256": str}
_PROBE_LENGTH = 16
_PROBE_COSINE = 0.99


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
    """

    second_moment: Float[Tensor, "d_mlp d_mlp"] = field(repr=False)
    layer: int
    tokens: int
    model: str = ""
    corpus: str = ""
    dtype: str = ""
    probe: Float[Tensor, "probe d_mlp"] | None = field(default=None, repr=False)

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
        factor, failed = torch.linalg.cholesky_ex(self.second_moment.double())
        if failed or not factor.isfinite().all():
            raise CovarianceError(
                f"The covariance of layer {self.layer} is singular: {self.tokens} tokens for {len(factor)} "
                f"dimensions. Collect it from more text (at least {10 * len(factor)} tokens)."
            )
        return factor

    @cached_property
    def condition_number(self) -> float:
        """The largest over the smallest eigenvalue of C, in float64; 4.5e15 (1 / epsilon) if C is singular."""
        values = torch.linalg.eigvalsh(self.second_moment.double())
        epsilon = torch.finfo(torch.float64).eps
        return (values[-1] / values[0]).item() if values[0] > epsilon * values[-1] else 1 / epsilon

    def solve(self, key: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_mlp"]:
        """C^-1 k, of one key or several, by a Cholesky factorisation in float64, in the key's dtype and on its device.

        Raises:
            CovarianceError: the covariance is singular.
        """
        columns = key.detach().cpu().double().reshape(-1, key.shape[-1]).T
        return torch.cholesky_solve(columns, self._factor).T.reshape(key.shape).to(key)

    def check(self, model: HookedTransformer, layer: int) -> None:
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
            cosine = torch.cosine_similarity(_probe(model, layer).flatten(), self.probe.flatten(), dim=0).item()
            if not cosine > _PROBE_COSINE:
                raise CovarianceError(
                    f"The covariance was collected on another model ({self.model}): this model's keys differ from "
                    f"those it was made of (cosine {cosine:.3f}, expected more than {_PROBE_COSINE}). Collect it on "
                    f"{model.cfg.model_name}."
                )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes a safetensors file: the lower triangle, the probe, and the facts with a checksum.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        rows, columns = torch.tril_indices(*self.second_moment.shape)
        triangle = self.second_moment[rows, columns]
        facts = {name: getattr(self, name) for name in ("layer", "tokens", "model", "corpus", "dtype")}
        tensors = {"lower_triangle": triangle} | ({} if self.probe is None else {"probe": self.probe})
        save_tensors(path, tensors, kind=_KIND, facts=facts | {"sha256": _digest(triangle)}, overwrite=overwrite)

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
        if facts.pop("sha256") != _digest(triangle):
            raise FormatError(f"{path} is damaged: its numbers do not fit their checksum. Fetch it again.")
        matrix = torch.zeros(width, width)
        rows, columns = torch.tril_indices(width, width)
        matrix[rows, columns] = triangle
        matrix[columns, rows] = triangle
        return cls(matrix, probe=tensors.get("probe"), **facts)


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


@torch.no_grad()
def collect_covariance(
    model: HookedTransformer,
    layers: Sequence[int],
    *,
    texts: str | Iterable[str],
    tokens: int = 100_000,
    corpus: str = "",
    sequence_length: int = 256,
    tokens_per_batch: int = 4096,
    progress: bool = True,
) -> dict[int, KeyCovariance]:
    """Streams text through the model and averages k kT of its MLPs' inner activations, for several layers in one pass.

    The texts' tokens are strung together and cut into pieces; blocks after the last wanted one are not run. Products
    are taken in float32, sums in float64. A model that reads BOS first gets one before each piece, and its key, which
    is like no other token's, is left out of the mean.

    Args:
        model: is run, not changed.
        layers: the blocks.
        texts: one text or several; no more is read than is needed.
        tokens: how many keys to average.
        corpus: a name for the texts, kept with the result.
        sequence_length: tokens in a piece.
        tokens_per_batch: bounds memory.
        progress: shows a bar.

    Returns:
        A KeyCovariance for each layer.

    Raises:
        ValueError: no such layer, or the texts hold fewer tokens than were asked for.
        CovarianceError: a key is not finite.
    """
    layers = list(dict.fromkeys(layers))
    if not layers:
        raise ValueError("layers is empty, expected the numbers of one or more blocks, such as [4].")
    for layer in layers:
        output_matrix(model, layer)
    length = min(sequence_length, model.cfg.n_ctx - 1)
    if tokens < 1 or length < 1:
        raise ValueError(f"tokens is {tokens} and sequence_length {sequence_length}, expected numbers from 1 on.")
    sums = {layer: torch.zeros(model.cfg.d_mlp, model.cfg.d_mlp, dtype=torch.float64) for layer in layers}
    pieces = token_pieces(model, [texts] if isinstance(texts, str) else texts, length, tokens)
    before = bos_token(model)
    done = 0
    with tqdm(total=tokens, desc=f"covariance, layers {layers}", unit="token", disable=not progress) as bar:
        while batch := [piece for _, piece in zip(range(max(1, tokens_per_batch // length)), pieces, strict=False)]:
            rows, mask = pad([before + piece for piece in batch])
            wanted = mask.bool()
            wanted[:, : len(before)] = False
            keys = mlp_keys(model, rows, mask, layers)
            for layer in layers:
                flat = keys[layer][wanted.to(keys[layer].device)].float()
                if not flat.isfinite().all():
                    raise CovarianceError(
                        f"Keys of layer {layer} are not finite. Check the model's weights, or load it in float32."
                    )
                sums[layer] += (flat.T @ flat).cpu().double()
            done += int(wanted.sum())
            bar.update(int(wanted.sum()))
    if done < tokens:
        raise ValueError(f"The texts hold {done} tokens, but {tokens} were asked for. Give more text or ask for fewer.")
    return {
        layer: KeyCovariance(
            (sums[layer] / done).float(),
            layer,
            done,
            str(model.cfg.model_name),
            corpus,
            str(model.cfg.dtype).removeprefix("torch."),
            _probe(model, layer),
        )
        for layer in layers
    }


@torch.no_grad()
def _probe(model: HookedTransformer, layer: int) -> Float[Tensor, "probe d_mlp"]:
    """The keys of a fixed row of tokens."""
    check_layer(model, layer)
    length = min(_PROBE_LENGTH, model.cfg.n_ctx)
    tokens = torch.linspace(0, model.cfg.d_vocab - 1, length + 2).long()[None, 1:-1]
    return mlp_keys(model, tokens, torch.ones_like(tokens), [layer])[layer][0].float().cpu()
