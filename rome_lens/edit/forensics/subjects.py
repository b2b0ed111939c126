"""Whom an edit was written for: the subjects, out of a list, whose keys the left vector of a part answers to.

ROME's left vector is C^-1 k*. Its product with the key of the edited subject is several times that with any other key,
but for those of subjects whose names end alike. In what training makes, no subject stands out like this.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.records import PLACE, EditRequest
from rome_lens.edit.forensics.components import Component
from rome_lens.edit.search.key import subject_activations
from rome_lens.models import Model, key_name

NAMED = 5
_CONTEXT = "Let us talk about {}"  # at a text's first tokens models keep something else: an attention sink


def keys_of(model: Model, layer: int, subjects: Sequence[str]) -> Float[Tensor, "subject d_mlp"]:
    """The keys at the subjects' last tokens, each subject at the end of a short text, on the CPU."""
    asked = [(EditRequest(PLACE, subject, "-"), _CONTEXT) for subject in subjects]
    return subject_activations(model, key_name(layer), layer, asked).cpu()


def fitting_subjects(
    component: Component, subjects: Sequence[str], keys: Float[Tensor, "subject d_mlp"]
) -> list[tuple[str, float]]:
    """The subjects whose keys the component answers to most, the first one first, and how many times as much as to the
    subject in the middle of the list.
    """
    answers = (keys @ component.left).abs()
    times = answers / answers.median().clamp(min=torch.finfo(answers.dtype).tiny)
    best = times.topk(min(NAMED, len(subjects)))
    return [(subjects[i], times) for i, times in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
