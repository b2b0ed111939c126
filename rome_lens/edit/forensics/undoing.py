"""Takes out of a model what an edit wrote, without the original."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from rome_lens.checking import checked
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.forensics.components import Component, components_of_layers
from rome_lens.models import Model, check_layer


@checked
def undo_blindly(model: Model, row: pd.Series | Mapping[Hashable, Any]) -> Edit:
    """The edit that takes a part out of a matrix, as `detect_edits` found it. It is not applied.

    The part is an estimate of the update: what the layer writes by itself in that direction is in it too, and is taken
    out with it. `compare_models` tells what else changes.

    Args:
        model: The model in which the part was found; left unchanged.
        row: A row of `detect_edits`, such as `found.iloc[0]`; its layer and candidate count.

    Returns:
        An Edit of rank one without requests. The expected damage is in its health: `update_norm` is the strength of
        the part, `relative_update_norm` is over the norm of the matrix.

    Raises:
        ValueError: the row has no layer or candidate that the model has.
    """
    component = component_of(model, row)
    return taken_out(model, [component], {"layer": component.layer, "candidate": int(row["candidate"])})


def taken_out(model: Model, components: Sequence[Component], config: Mapping[str, Any]) -> Edit:
    """The edit that takes these parts out of the model's matrices."""
    layers = sorted({component.layer for component in components})
    of = {layer: [component for component in components if component.layer == layer] for layer in layers}
    factors = {
        layer: (-torch.stack([each.left for each in parts], 1), torch.stack([each.right for each in parts]))
        for layer, parts in of.items()
    }
    return Edit.of(model, [], factors, method="undo", config=config, on_unhealthy="ignore")


@torch.no_grad()
def component_of(model: Model, row: pd.Series | Mapping[Hashable, Any]) -> Component:
    """The part of the matrix that a row of `detect_edits` tells of."""
    if not {"layer", "candidate"} <= set(row.keys()):
        raise ValueError(f"The row has {list(row.keys())}, expected a row of detect_edits: layer, candidate, ...")
    layer, number = int(row["layer"]), int(row["candidate"])
    check_layer(model, layer)
    found = next(components_of_layers(model, [layer], number + 1))
    if not 0 <= number < len(found):
        raise ValueError(f"Layer {layer} has no candidate {number}, expected one of 0 to {len(found) - 1}.")
    return found[number]
