"""Average effects over many facts (paper section 2.2, figure 2)."""

from collections.abc import Sequence

import pandas as pd

from rome_lens.intervals import bootstrap_interval
from rome_lens.locate.roles import ROLES
from rome_lens.locate.tracing import CausalTrace


def average_effects(traces: Sequence[CausalTrace], *, seed: int = 0) -> pd.DataFrame:
    """The average indirect effect by kind, token role and layer, with 95 % bootstrap intervals over facts.

    Tokens of one fact in one role are averaged first, so that each fact counts once. Positions before the subject have
    no role and are left out.

    Args:
        traces: of one model; several kinds may be mixed.
        seed: of the bootstrap.

    Returns:
        A row for each kind, role and layer: kind, role, layer, mean, ci_low, ci_high, n (facts that have the role).

    Raises:
        ValueError: no traces, or traces of models with different numbers of layers.
    """
    if not traces:
        raise ValueError("traces is empty, expected one CausalTrace or more.")
    if len({trace.restored.shape[1] for trace in traces}) > 1:
        raise ValueError("The traces have different numbers of layers. Average those of one model.")
    frames = pd.concat([trace.to_frame().assign(trace=i) for i, trace in enumerate(traces)])
    by_fact = frames.pivot_table("indirect_effect", ["kind", "role", "trace"], "layer", aggfunc="mean").reset_index()
    rows = []
    for kind in dict.fromkeys(trace.kind for trace in traces):
        for role in ROLES:
            effects = by_fact[(by_fact["kind"] == kind) & (by_fact["role"] == role)]
            if effects.empty:
                continue
            wide = effects.drop(columns=["kind", "role", "trace"]).to_numpy(dtype=float)
            low, high = bootstrap_interval(wide, seed=seed)
            for layer, mean in enumerate(wide.mean(0)):
                rows.append((kind, role, layer, mean, low[layer], high[layer], len(wide)))
    return pd.DataFrame(rows, columns=["kind", "role", "layer", "mean", "ci_low", "ci_high", "n"])
