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
    frames = [trace.to_frame().assign(trace=i) for i, trace in enumerate(traces)]
    by_fact = pd.concat(frames).groupby(["kind", "role", "trace", "layer"], sort=False)["indirect_effect"].mean()
    rows = []
    for kind in dict.fromkeys(trace.kind for trace in traces):
        present = by_fact[kind].index.unique("role")
        for role in [role for role in ROLES if role in present]:
            wide = by_fact[kind, role].unstack("layer").sort_index(axis=1)
            low, high = bootstrap_interval(wide.to_numpy(), seed=seed)
            for i, layer in enumerate(wide.columns):
                rows.append((kind, role, layer, wide[layer].mean(), low[i], high[i], len(wide)))
    return pd.DataFrame(rows, columns=["kind", "role", "layer", "mean", "ci_low", "ci_high", "n"])
