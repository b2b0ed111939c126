"""Was this model edited, and where? Told from its weights, without the original."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import check_whole, checked
from rome_lens.data.records import Fact
from rome_lens.edit.forensics.components import Component, components_of_layers
from rome_lens.edit.forensics.naming import raised_tokens, said_of
from rome_lens.edit.forensics.subjects import fitting_subjects, keys_of
from rome_lens.models import Model, check_layer

SUSPICIOUS = 3.0
"""The score above which an edit is suspected; see `detect_edits`."""
_LEAST_SPREAD = 0.1  # of the excess over layers, in nats
_TO_SIGMA = 1.4826  # the median absolute deviation of a normal distribution times this is its standard deviation


@checked
def detect_edits(
    model: Model,
    *,
    layers: Sequence[int] | None = None,
    candidates: int = 1,
    subjects: Sequence[str | Fact] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Rank-one edits of MLP output matrices, found without the original model.

    In each layer the parts of W_out are sought that training does not explain (`components.py` says how). How far they
    stand out is compared with the best of every other layer: the score is the distance from their median, in units of
    their spread (the median absolute deviation as a standard deviation, at least 0.1 nats). What edits with several
    layers, with small norms or with changes of full rank leave behind is weaker: `docs/forensics.md` tells what was
    found and what was not.

    Args:
        model: Model to look into; left unchanged. It is run only to name the objects of suspicious parts.
        layers: blocks to look into; None: all but the last, which writes for the unembedding alone and is unlike the
            others without any edit. Each is compared with the others among them.
        candidates: parts of each layer, at most.
        subjects: Names of things that the model may have been edited about, or facts about them (`load_subjects`), the
            more the better. If the edited one is
            among them it can be told, and the object with it much more surely. None: the object is sought without.

    Returns:
        A row for each layer and candidate, the highest score first: layer, candidate (number within the layer, from 0),
        score, suspicious (whether the score is above 3), strength (norm of the part: that of the update, if it is one);
        and of suspicious parts `objects`, the five tokens that the part makes the model say most, and `object`, the
        first of them without its space ("" and none for the others). With `subjects` also `subjects`, the five whose
        keys the part answers to most, `subject`, the first of them, and `stands_out`: how many times as much it answers
        to that one as to the middle one of the list.

    Raises:
        EditError: a weight is NaN or infinite.
        ValueError: no such layer, a layer without a single MLP output matrix, `candidates` is below 1, or `subjects`
            is a text or holds none.
    """
    check_whole(candidates=candidates)
    listed = None
    if subjects is not None:
        listed = [each.subject if isinstance(each, Fact) else each for each in subjects]
        if isinstance(subjects, str) or not all(name.strip() for name in listed or [""]):
            raise ValueError(f"subjects is {subjects!r}, expected a list of one or more names, none of them empty.")
    found = find_components(model, layers, candidates, progress=progress)
    suspicious = [component for component, _, score in found if score > SUSPICIOUS]
    named = named_parts(model, suspicious, listed)
    names = list(tqdm(named, "name the objects", len(suspicious), unit="part", disable=not progress or not suspicious))
    names += [((), [])] * (len(found) - len(names))
    rows = [
        {
            "layer": component.layer,
            "candidate": number,
            "score": score,
            "suspicious": score > SUSPICIOUS,
            "strength": component.right.double().norm().item(),
            "object": "".join(said[:1]).strip(),
            "objects": said,
        }
        | ({} if subjects is None else _of_subjects(fitting))
        for (component, number, score), (said, fitting) in zip(found, names, strict=True)
    ]
    return pd.DataFrame(rows)


def _of_subjects(fitting: Sequence[tuple[str, float]]) -> dict[str, Any]:
    first, times = fitting[0] if fitting else ("", float("nan"))
    return {"subject": first, "subjects": tuple(name for name, _ in fitting), "stands_out": times}


def named_parts(
    model: Model,
    components: Sequence[Component],
    subjects: Sequence[str] | None,
    keys: Mapping[int, Float[Tensor, "subject d_mlp"]] | None = None,
) -> Iterator[tuple[tuple[str, ...], list[tuple[str, float]]]]:
    """For each component the tokens that it makes the model say, and the subjects it fits, with how far they stand out.
    `keys` are those of the subjects by layer, if they are known.
    """
    if subjects is None:
        yield from ((said, []) for said in raised_tokens(model, components))
        return
    known = dict(keys or {})
    for component in components:
        if component.layer not in known:
            known[component.layer] = keys_of(model, component.layer, subjects)
        fitting = fitting_subjects(component, subjects, known[component.layer])
        yield said_of(model, component, fitting[0][0]), fitting


def find_components(
    model: Model, layers: Sequence[int] | None, candidates: int, *, progress: bool
) -> list[tuple[Component, int, float]]:
    """The components of the layers, with their number within the layer and their score; the highest score first."""
    chosen = sorted(set(range(max(1, model.cfg.n_layers - 1)) if layers is None else layers))
    if not chosen:
        raise ValueError("layers is empty, expected one or more blocks.")
    for layer in chosen:
        check_layer(model, layer)
    with tqdm(total=len(chosen), desc="look for edits", unit="layer", disable=not progress) as bar:
        by_layer = []
        for components in components_of_layers(model, chosen, candidates):
            by_layer.append(components)
            bar.update()
    return scored(by_layer)


def scored(by_layer: Sequence[Sequence[Component]]) -> list[tuple[Component, int, float]]:
    """The components of each layer, with their number within it and their score; the highest score first."""
    best = torch.tensor([components[0].excess for components in by_layer])
    rows = []
    for place, components in enumerate(by_layer):
        others = torch.cat([best[:place], best[place + 1 :]])
        usual = others.median().item() if len(others) else 0.0
        spread = _TO_SIGMA * (others - usual).abs().median().item() if len(others) else 0.0
        for number, component in enumerate(components):
            rows.append((component, number, (component.excess - usual) / max(_LEAST_SPREAD, spread)))
    return sorted(rows, key=lambda row: -row[2])
