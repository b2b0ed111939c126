"""How the subject is hidden from the model (paper section 2.1)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from rome_lens.datasets import load_builtin_records
from rome_lens.models import embeddings
from rome_lens.tokens import tokenize


@dataclass(frozen=True)
class GaussianNoise:
    """Adds independent Gaussian noise to the embeddings of the subject's tokens.

    Attributes:
        std: standard deviation of the noise; None means three times that of the embeddings of subjects (paper section
            2.1; `embedding_std` over the subjects of the fact set in this package).
        seed: of NumPy's RandomState, drawn in the order sample, token, dimension as the authors' code does it: the
            same noise on every device, and the same for every restored state.
    """

    std: float | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        if self.std is not None and not self.std > 0:
            raise ValueError(f"The noise's std is {self.std}, expected a number above 0, or None for 3 sigma.")

    def scale(self, model: HookedTransformer) -> float:
        """The standard deviation of the noise for this model."""
        if self.std is not None:
            return self.std
        return 3 * embedding_std(model, sorted({record.request.subject for record in load_builtin_records()}))

    def sample(self, model: HookedTransformer, samples: int, tokens: int) -> Float[Tensor, "sample token d_model"]:
        """What is added to the embeddings of `tokens` subject tokens, on their device and in their dtype."""
        matrix = embeddings(model)
        noise = np.random.RandomState(self.seed).randn(samples, tokens, matrix.shape[1]) * self.scale(model)
        return torch.from_numpy(noise).to(matrix)


def embedding_std(model: HookedTransformer, subjects: Iterable[str]) -> float:
    """The standard deviation of all entries of the embeddings of the subjects' tokens (paper section 2.1's sigma)."""
    ids = [i for subject in subjects for i in tokenize(model, subject).ids]
    return embeddings(model)[ids].float().std().item()
