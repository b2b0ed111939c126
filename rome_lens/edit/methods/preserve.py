"""Prompts whose answers an edit has to leave as they are: which they are, and their keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.records import PLACE, EditRecord, EditRequest, Fact, QuestionRecord, check_text
from rome_lens.edit.methods.closed_forms import PreservedKeys
from rome_lens.edit.search.contexts import EditedToken, in_context
from rome_lens.edit.search.key import prefix_activations
from rome_lens.errors import EditError
from rome_lens.models import Model, key_name, output_matrix
from rome_lens.models.tokens import tokenize

Prompts: TypeAlias = Sequence[str | Fact | EditRequest | EditRecord | QuestionRecord]
Preserve: TypeAlias = Prompts | Literal["auto"] | None
"""What an edit is to leave as it is: prompts, or what holds one (of a record, its request's); "auto": the prompts of
those subjects that it would reach most (near.py).
"""


@dataclass(frozen=True)
class PreservedPrompts:
    """The prompts and their tokens. Each position of each prompt has a key; prompts that begin alike share some.

    Attributes:
        places: where the keys are read: a prompt up to and with a token, and the prompt's text.
    """

    places: Mapping[tuple[int, ...], str]

    @property
    def texts(self) -> list[str]:
        """The prompts."""
        return list(dict.fromkeys(self.places.values()))

    def as_json(self) -> dict[str, list[str]]:
        """What an edit's config says of them."""
        return {"preserve": self.texts} if self.places else {}

    def keys(self, model: Model, layer: int) -> PreservedKeys | None:
        """The keys of a layer at all places, of the model as it is now, in float64 on the CPU; None: no prompts."""
        if not self.places:
            return None
        rows = [tokenize(model, text).ids for text in self.texts]
        found = prefix_activations(model, key_name(layer), layer, rows)
        return PreservedKeys(torch.stack([found[place] for place in self.places]), list(self.places.values()))


def preserved_prompts(
    model: Model,
    preserve: Prompts | None,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    *,
    token: EditedToken,
) -> PreservedPrompts:
    """The prompts to preserve, if an edit of `requests` in `layers` can leave them as they are.

    Raises:
        EditError: a prompt begins with what is to be changed, or there are more keys than a layer has dimensions.
        ValueError: a prompt is blank or too long.
    """
    places: dict[tuple[int, ...], str] = {}
    for text in preserved_texts(preserve):
        ids = tokenize(model, text).ids
        for end in range(1, len(ids) + 1):
            places.setdefault(ids[:end], text)
    if places:
        _check_apart(model, places, requests, token)
        for layer in layers:
            check_room(model, layer, len(places), len(requests))
    return PreservedPrompts(places)


def preserved_texts(preserve: Prompts | None) -> list[str]:
    """The prompts, each once. Raises ValueError if one is blank."""
    texts = []
    for prompt in preserve or ():
        about = prompt.request if isinstance(prompt, EditRecord | QuestionRecord) else prompt
        texts.append(about if isinstance(about, str) else about.text)
        check_text(texts[-1], "preserved prompt")
    return list(dict.fromkeys(texts))


def edited_place(model: Model, request: EditRequest, token: EditedToken) -> tuple[int, ...]:
    """The bare prompt's tokens up to and with the edited one, on which its key depends."""
    text, position, _ = in_context(model, request, PLACE, token=token)
    return text.ids[: position + 1]


def _check_apart(
    model: Model, places: Mapping[tuple[int, ...], str], requests: Sequence[EditRequest], token: EditedToken
) -> None:
    for request in requests:
        culprit = places.get(edited_place(model, request, token))
        if culprit is not None:
            raise EditError(
                f"{culprit!r} cannot be preserved while {request.text!r} is edited: up to the edited token they are "
                "the same text, and so have the same key. Take it off the list. No weight was changed."
            )


def check_room(model: Model, layer: int, preserved: int, requests: int) -> None:
    """Raises EditError if there are more keys than the layer has dimensions."""
    width = len(output_matrix(model, layer))
    if preserved + requests > width:
        raise EditError(
            f"The prompts to preserve have {preserved} keys, and {requests} more are to be edited, but layer {layer} "
            f"of {model.cfg.model_name} has {width} dimensions for both together. Preserve fewer or shorter prompts. "
            "No weight was changed."
        )


def preserve_figures(
    with_preserved: tuple[Float[Tensor, "d_mlp request"], Float[Tensor, "request d_model"]],
    without: tuple[Float[Tensor, "d_mlp request"], Float[Tensor, "request d_model"]],
    keys: Float[Tensor, "request d_mlp"],
    preserved: PreservedKeys,
) -> dict[str, Any]:
    """What preserving costs, as figures of EditHealth, for one layer: factors (left, right) with it and without."""
    asked = keys.to(preserved.keys)
    rows = torch.cat([asked / asked.norm(dim=-1, keepdim=True), preserved.directions])
    sizes = torch.linalg.svdvals(rows[rows.any(dim=-1)])
    epsilon = torch.finfo(sizes.dtype).eps
    norms = [torch.linalg.matrix_norm(left @ right).item() for left, right in (with_preserved, without)]
    return {
        "preserve_growth": norms[0] / norms[1],
        "preserve_condition": (sizes[0] / sizes[-1].clamp(min=epsilon * sizes[0])).item(),
    }


def worst_figures(figures: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Of several layers' `preserve_figures` the worst of each; {} if nothing was preserved."""
    return {name: max(each[name] for each in figures) for name in figures[0]} if figures else {}
