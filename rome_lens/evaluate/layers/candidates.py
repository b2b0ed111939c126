"""The layers that are worth real edits: tracing alone does not tell which is best (Hase et al. 2023)."""

from collections.abc import Mapping, Sequence

_DEEPEST = 2 / 3  # of the depth: facts are read off a subject before (paper section 2.2)


def candidate_layers(effects: Mapping[int, float], known: Sequence[int], *, count: int) -> list[int]:
    """At most `count` layers, ascending: the known ones, half with the largest effects, the rest spread over the depth.

    Args:
        effects: by layer, of the layers to choose among.
        known: layers to try in any case, such as a preset's.
        count: how many; all layers if the model has no more.
    """
    if len(effects) <= count:
        return sorted(effects)
    chosen = list(dict.fromkeys(known))[:count]
    for layer in sorted(effects, key=lambda layer: -effects[layer])[: count // 2]:
        if layer not in chosen and len(chosen) < count:
            chosen.append(layer)
    upper = sorted(effects)[: max(count, round(_DEEPEST * len(effects)))]
    while len(chosen) < count:
        chosen.append(max(upper, key=lambda layer: min(abs(layer - other) for other in chosen)))
    return sorted(chosen)
