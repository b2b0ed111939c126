"""Diagnostics of an edit: figures that tell whether it works and is likely to harm the model, and their thresholds."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.edit.artifact.update import MatrixPlace, layer_and_matrix
from rome_lens.errors import EditError, EditWarning, warn
from rome_lens.models import Model, find_matrix

OnUnhealthy = Literal["warn", "raise", "ignore"]

LEAST_KEY_SHARE = 0.1
MOST_RELATIVE_NORM = 0.5
LEAST_TARGET_PROBABILITY = 0.5
MOST_ESSENCE_KL = 1.0
MOST_PRESERVE_GROWTH = 5.0
MOST_CONDITION_NUMBER = 1 / torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class EditHealth:
    """Diagnostics of an edit's computation; None where the method has no such figure.

    With several requests, each figure is the worst among them. `target_probability` and `targets_missed` are of the
    model with the edit in place, all others of the computation.

    Attributes:
        update_norm: Frobenius norm of the update; with several layers, the largest.
        relative_update_norm: the same, divided by the norm of the weight. Edits that disable a model have much larger
            updates than others (Gupta et al. 2024, arXiv 2403.07175, section 3).
        key_share: (k . u) / (k* . u), for the bare prompt's key k and the mean key k*: how much of the edit the bare
            prompt gets. Edits that divide by k . u and collapse a model have one near 0.01 (Yang et al. 2024, arXiv
            2406.11263).
        key_dot_u: cosine between the key that Eq. 2 divides by and u.
        target_probability: probability of the target after its bare prompt in the edited model (geometric mean over
            tokens).
        targets_missed: number of requests for which that is below 0.5.
        nll: first term of Eq. 4 at the end of the search, a mean over tokens and contexts; exp(-nll) is the probability
            that the search reached.
        kl: second term, in nats, without its factor: how far the next token after "{subject} is a" moved.
        weight_decay: norm penalty at the end, with its factor.
        steps: gradient steps of the search.
        clamped: whether the last step reached the bound on |delta|.
        condition_number: condition number of the covariance; beyond 1 / epsilon of float32, in which it is stored,
            C^-1 is mostly rounding (Higham 2002, section 7.2).
        preserve_growth: norm of the update, divided by that of the same edit with nothing preserved.
        preserve_condition: condition number of the keys of requests and preserved prompts, each of length 1: how near
            they are to being dependent.
    """

    update_norm: float
    relative_update_norm: float
    key_share: float | None = None
    key_dot_u: float | None = None
    target_probability: float | None = None
    targets_missed: int | None = None
    nll: float | None = None
    kl: float | None = None
    weight_decay: float | None = None
    steps: int | None = None
    clamped: bool | None = None
    condition_number: float | None = None
    preserve_growth: float | None = None
    preserve_condition: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            given = value is not None or field.default is MISSING
            if given and (isinstance(value, str) or not isinstance(value, int | float)):
                raise TypeError(f"The figure {field.name!r} of an edit's health is {value!r}, expected a number.")

    @property
    def problems(self) -> list[str]:
        """One message for each figure beyond its threshold; empty for a healthy edit."""
        found = [f"{name} is {value}" for name, value in self.to_dict().items() if not math.isfinite(value)]
        if self.relative_update_norm > MOST_RELATIVE_NORM:
            found.append(
                f"the update is {self.relative_update_norm:.2f} of the weight's norm (at most {MOST_RELATIVE_NORM})"
            )
        if self.key_share is not None and self.key_share < LEAST_KEY_SHARE:
            found.append(
                f"the bare prompt's key has {self.key_share:.3f} of the mean key's share of the edit (at least "
                f"{LEAST_KEY_SHARE}): it is unlike those in contexts; constrain_bare_prompt=True gives both "
                "the same"
            )
        if self.target_probability is not None and self.target_probability < LEAST_TARGET_PROBABILITY:
            found.append(self._missed_targets())
        if self.kl is not None and self.kl > MOST_ESSENCE_KL:
            found.append(f"what the subject is has moved by {self.kl:.2f} nats (at most {MOST_ESSENCE_KL})")
        if self.condition_number is not None and self.condition_number > MOST_CONDITION_NUMBER:
            found.append(
                f"the covariance's condition number is {self.condition_number:.1e} (at most "
                f"{MOST_CONDITION_NUMBER:.1e}): collect it from more text, or shrink it"
            )
        if self.preserve_growth is not None and self.preserve_growth > MOST_PRESERVE_GROWTH:
            found.append(
                f"preserving makes the update {self.preserve_growth:.1f} times as large (at most "
                f"{MOST_PRESERVE_GROWTH}): some of what is to be preserved is too much like what is edited"
            )
        return found

    def _missed_targets(self) -> str:
        """How improbable the worst target is in the edited model, the likely cause, and a remedy."""
        several = f", and {self.targets_missed} targets are below that" if (self.targets_missed or 0) > 1 else ""
        result = (
            f"in the edited model the target has a probability of {self.target_probability:.2f} after its prompt (at "
            f"least {LEAST_TARGET_PROBABILITY}{several})"
        )
        if self.nll is None:
            return f"{result}: another layer, more requests of its kind or a larger step may help"
        reached = math.exp(-self.nll)
        if reached < LEAST_TARGET_PROBABILITY:
            return (
                f"{result}: the search itself reached {reached:.2f}; more steps, a larger clamp_norm_factor or another "
                "layer may help"
            )
        return (
            f"{result}, although the search reached {reached:.2f}: the prompt's key gets too little of the edit. "
            "constrain_bare_prompt=True gives it as much as the mean key, token='subject_end' avoids a text's first "
            "token, and a smaller covariance_weight or ridge, fewer requests at once, or fewer preserved prompts leave "
            "more of it"
        )

    def to_dict(self) -> dict[str, float | int | bool]:
        """The figures that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def update_norms(
    model: Model, factors: Mapping[MatrixPlace, tuple[Float[Tensor, "d_in rank"], Float[Tensor, "rank d_out"]]]
) -> dict[str, Any]:
    """The norms of EditHealth for (left, right) by layer, or by (layer, matrix): the largest of each."""
    norms = [
        ((left @ right).float().norm().cpu(), find_matrix(model, *layer_and_matrix(place)).values.float().norm().cpu())
        for place, (left, right) in factors.items()
    ]
    return {
        "update_norm": max(change.item() for change, _ in norms),
        "relative_update_norm": max((change / weight).item() for change, weight in norms),
    }


def target_figures(probabilities: Float[Tensor, " request"]) -> dict[str, Any]:
    """The figures of EditHealth for the targets' probabilities in the edited model."""
    missed = int((~(probabilities >= LEAST_TARGET_PROBABILITY)).sum())
    return {"target_probability": probabilities.min().item(), "targets_missed": missed}


def report_problems(health: EditHealth, on_unhealthy: OnUnhealthy, *, edit: object) -> None:
    """Warns of an unhealthy edit, raises an EditError, or does nothing, as `on_unhealthy` says."""
    if on_unhealthy == "ignore" or not health.problems:
        return
    message = f"{edit} is unhealthy: {'; '.join(health.problems)}."
    if on_unhealthy == "raise":
        raise EditError(f"{message} No weight was changed.")
    warn(message, EditWarning)
