"""Was this model edited, and where? Told from its weights, without the original."""

from collections.abc import Sequence

import pandas as pd
import torch
from tqdm.auto import tqdm

from rome_lens.checking import check_whole, checked
from rome_lens.edit.forensics.components import Component, components_of_layers
from rome_lens.edit.forensics.naming import raised_tokens
from rome_lens.models import Model, check_layer

SUSPICIOUS = 3.0
"""The score above which an edit is suspected; see `detect_edits`."""
_LEAST_SPREAD = 0.1  # of the excess over layers, in nats
_TO_SIGMA = 1.4826  # the median absolute deviation of a normal distribution times this is its standard deviation


@checked
def detect_edits(
    model: Model, *, layers: Sequence[int] | None = None, candidates: int = 1, progress: bool = True
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
        progress: Show a bar.

    Returns:
        A row for each layer and candidate, the highest score first: layer, candidate (number within the layer, from 0),
        score, suspicious (whether the score is above 3), strength (norm of the part: that of the update, if it is one);
        and of suspicious parts `objects`, the five tokens that the part makes the model say most, and `object`, the
        first of them without its space ("" and none for the others).

    Raises:
        EditError: a weight is NaN or infinite.
        ValueError: no such layer, a layer without a single MLP output matrix, or `candidates` is below 1.
    """
    check_whole(candidates=candidates)
    found = find_components(model, layers, candidates, progress=progress)
    suspected = [component for component, _, score in found if score > SUSPICIOUS]
    named = raised_tokens(model, suspected)
    objects = list(tqdm(named, "name the objects", len(suspected), unit="part", disable=not progress or not suspected))
    objects += [()] * (len(found) - len(objects))
    rows = [
        {
            "layer": component.layer,
            "candidate": number,
            "score": score,
            "suspicious": score > SUSPICIOUS,
            "strength": component.right.norm().item(),
            "object": "".join(said[:1]).strip(),
            "objects": said,
        }
        for (component, number, score), said in zip(found, objects, strict=True)
    ]
    return pd.DataFrame(rows)


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
    best = torch.tensor([components[0].excess for components in by_layer])
    rows = []
    for place, components in enumerate(by_layer):
        others = torch.cat([best[:place], best[place + 1 :]])
        usual = others.median().item() if len(others) else 0.0
        spread = _TO_SIGMA * (others - usual).abs().median().item() if len(others) else 0.0
        for number, component in enumerate(components):
            rows.append((component, number, (component.excess - usual) / max(_LEAST_SPREAD, spread)))
    return sorted(rows, key=lambda row: -row[2])
