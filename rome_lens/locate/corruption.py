"""How the subject is hidden from the model (paper section 2.1; Zhang and Nanda 2024, arXiv 2309.16042).

A corruption takes the clean embeddings of the subject's tokens and returns the corrupted ones, one row per sample. The
same rows serve the corrupted baseline and every cell of the grid.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import check_seed, check_tensor, checked
from rome_lens.data.readers.builtin import load_builtin_records
from rome_lens.data.records import Fact, check_subject, check_text, subject_range
from rome_lens.locate.own import name_of
from rome_lens.locate.prompt import TracedPrompt
from rome_lens.models import Model, embed
from rome_lens.models.tokens import tokenize


@runtime_checkable
class Corruption(Protocol):
    """A corruption: an object with a method `corrupted`, such as `GaussianNoise` or one of your own."""

    def corrupted(
        self, model: Model, fact: Fact, clean: Float[Tensor, "token d_model"], samples: int
    ) -> Float[Tensor, "sample token d_model"]:
        """The embeddings that replace the subject's clean ones: one row per sample, or one row if nothing is random."""


@runtime_checkable
class CorruptionFunction(Protocol):
    """A corruption as a function of your own, with the arguments and result of `Corruption.corrupted`."""

    def __call__(
        self, model: Model, fact: Fact, clean: Float[Tensor, "token d_model"], samples: int, /
    ) -> Float[Tensor, "sample token d_model"]:
        """As `Corruption.corrupted`."""


@dataclass(frozen=True, kw_only=True)
class _Noise:
    """Independent noise with one standard deviation for all entries, added to the clean embeddings or in their place.

    Attributes:
        std: the noise's standard deviation; None: `sigmas` times that of the entries of subjects' embeddings.
        sigmas: see `std`; 3 in the paper (section 2.1).
        subjects: subjects whose embeddings give sigma; None: those of the facts that ship with the package.
        seed: of NumPy's RandomState, drawn in the order sample, token, dimension as in the authors' code: the same
            noise on every device and for every restored state.
        replace: replaces the embeddings by the noise instead of adding it, in the baseline as in the grid (the released
            code forgets the baseline).
    """

    std: float | None = None
    sigmas: float = 3.0
    subjects: Sequence[str] | None = None
    seed: int = 1
    replace: bool = False

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_subjects(self.subjects)
        for name, value in (("std", self.std), ("sigmas", self.sigmas)):
            if value is not None and not value > 0:
                raise ValueError(
                    f"The noise's {name} is {value}, expected a number above 0 (std: or None, for sigmas)."
                )

    def scale(self, model: Model) -> float:
        """The standard deviation of the noise for this model."""
        if self.std is not None:
            return self.std
        return self.sigmas * subject_embeddings(model, self.subjects).std().item()

    def corrupted(
        self, model: Model, fact: Fact, clean: Float[Tensor, "token d_model"], samples: int
    ) -> Float[Tensor, "sample token d_model"]:
        """The clean embeddings plus noise, or the noise alone, in their dtype and on their device."""
        drawn = self._unit(np.random.RandomState(self.seed), (samples, *clean.shape))
        noise = torch.from_numpy(drawn * self.scale(model)).to(clean)
        return noise if self.replace else clean + noise

    def _unit(self, random: np.random.RandomState, shape: tuple[int, int, int]) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} is no noise of its own. Use GaussianNoise or another of its kind.")


@checked
@dataclass(frozen=True, kw_only=True)
class GaussianNoise(_Noise):
    """Independent Gaussian noise, by default of 3 sigma: the paper's corruption (section 2.1)."""

    def _unit(self, random: np.random.RandomState, shape: tuple[int, int, int]) -> np.ndarray:
        return random.randn(*shape)


@checked
@dataclass(frozen=True, kw_only=True)
class UniformNoise(_Noise):
    """Independent uniform noise between -sqrt(3) and sqrt(3) standard deviations."""

    def _unit(self, random: np.random.RandomState, shape: tuple[int, int, int]) -> np.ndarray:
        return random.uniform(-np.sqrt(3), np.sqrt(3), shape)


@checked
@dataclass(frozen=True)
class TokenReplacement:
    """Symmetric token replacement: another subject with as many tokens takes the subject's place.

    The corrupted prompt stays in the model's training distribution (Zhang and Nanda 2024, section 2). Nothing is
    random: there is one corrupted row.

    Attributes:
        subject: the other subject; `same_length_subject` finds one.
    """

    subject: str

    def __post_init__(self) -> None:
        check_subject(self.subject)

    def corrupted(
        self, model: Model, fact: Fact, clean: Float[Tensor, "token d_model"], samples: int
    ) -> Float[Tensor, "sample token d_model"]:
        """The embeddings of the other subject's tokens in the same prompt.

        Raises:
            ValueError: the other subject has another number of tokens, or changes neighbouring tokens.
        """
        text, positions = subject_range(model, fact)
        other, there = subject_range(model, Fact(fact.prompt, self.subject))
        outside = (text.ids[: positions.start], text.ids[positions.stop :])
        if len(there) != len(positions) or (other.ids[: there.start], other.ids[there.stop :]) != outside:
            raise ValueError(
                f"{self.subject!r} has {len(there)} tokens in {fact.prompt!r}, but {fact.subject!r} has "
                f"{len(positions)}. Choose another subject (same_length_subject finds one)."
            )
        ids = torch.tensor(other.ids[there.start : there.stop], device=clean.device)
        return repeat(embed(model, ids), "token d -> sample token d", sample=1)


CORRUPTIONS = {
    f"{each.__module__}.{each.__qualname__}": each for each in (GaussianNoise, UniformNoise, TokenReplacement)
}
"""The package's own corruptions, by their names in stored traces."""


def corrupted_embeddings(
    model: Model, fact: Fact, prompt: TracedPrompt, corruption: Corruption | CorruptionFunction, samples: int
) -> Float[Tensor, "sample token d_model"]:
    """The embeddings that replace those of the subject's tokens."""
    clean = embed(model, prompt.tokens)[prompt.subject.start : prompt.subject.stop]
    made = corruption.corrupted if isinstance(corruption, Corruption) else corruption
    found = made(model, fact, clean, samples)
    return check_tensor(f"The corruption {name_of(corruption)}", found, "samples", *clean.shape)


def resolved(corruption: Corruption | CorruptionFunction, model: Model) -> Corruption | CorruptionFunction:
    """The corruption with `std` as a number, where it is given in sigmas of embeddings."""
    return replace(corruption, std=corruption.scale(model)) if isinstance(corruption, _Noise) else corruption


@checked
def same_length_subject(model: Model, fact: Fact, others: Iterable[Fact]) -> str:
    """The first subject among `others`, facts of the same relation, that can replace the fact's token for token.

    Subjects with the fact's own answer are skipped: replacing by them would not hide the answer.

    Raises:
        ValueError: there is none.
    """
    text, positions = subject_range(model, fact)
    for other in others:
        if other.subject == fact.subject or (other.answer is not None and other.answer == fact.answer):
            continue
        tokens, there = subject_range(model, Fact(fact.prompt, other.subject))
        if len(there) == len(positions) and len(tokens.ids) == len(text.ids) and there.start == positions.start:
            return other.subject
    raise ValueError(
        f"None of the other subjects has the {len(positions)} tokens of {fact.subject!r} and another answer. Give more "
        "facts of the relation, or another corruption."
    )


def check_subjects(subjects: Sequence[str] | None) -> None:
    """Raises ValueError unless `subjects` is None or a list of at least one subject."""
    if subjects is None:
        return
    if isinstance(subjects, str) or not subjects:
        raise ValueError(f"subjects is {subjects!r}, expected a list of one subject or more, or None.")
    for subject in subjects:
        check_text(subject, "subject")


def subject_embeddings(model: Model, subjects: Sequence[str] | None = None) -> Float[Tensor, "token d_model"]:
    """The embeddings of the subjects' tokens as a run reads them, in float32.

    None: subjects of the facts that ship with the package.
    """
    if subjects is None:
        subjects = sorted({record.request.subject for record in load_builtin_records()})
    ids = [i for subject in subjects for i in tokenize(model, subject).ids]
    return embed(model, torch.tensor(ids, device=model.cfg.device)).float()
