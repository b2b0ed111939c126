"""Average effects over many facts (paper section 2.2, figure 2)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rome_lens.checking import check_seed, checked
from rome_lens.intervals import bootstrap_interval
from rome_lens.locate.roles import ROLES
from rome_lens.locate.trace import CausalTrace


@checked
def average_effects(traces: Sequence[CausalTrace], *, seed: int = 0) -> pd.DataFrame:
    """The average indirect effect by kind, token role and layer, with 95 % bootstrap intervals over facts.

    Tokens of one fact in one role are averaged first, so that each fact counts once. Positions before the subject have
    no role and are left out.

    Args:
        traces: of one model; several kinds may be mixed. The kind names severed sublayers and attribution: see `label`.
        seed: of the bootstrap.

    Returns:
        A row for each kind, role and layer: kind, role, layer, mean, ci_low, ci_high, n (facts that have the role).

    Raises:
        ValueError: no traces, models with different numbers of layers, or one kind with different windows, metrics or
            traced layers.
    """
    check_seed(seed)
    if not traces:
        raise ValueError("traces is empty, expected one CausalTrace or more.")
    if len({trace.restored.shape[1] for trace in traces}) > 1:
        raise ValueError("The traces have different numbers of layers. Average those of one model.")
    alike = {(label(trace), trace.config.window, trace.metric) for trace in traces}
    if len(alike) > len({label(trace) for trace in traces}):
        raise ValueError("The traces of one kind have different windows or metrics. Average those that are alike.")
    frames = pd.concat([trace.to_frame().assign(kind=label(trace), trace=i) for i, trace in enumerate(traces)])
    by_fact = frames.pivot_table("indirect_effect", ["kind", "role", "trace"], "layer", aggfunc="mean").reset_index()
    rows = []
    for kind in dict.fromkeys(map(label, traces)):
        for role in ROLES:
            effects = by_fact[(by_fact["kind"] == kind) & (by_fact["role"] == role)]
            if effects.empty:
                continue
            wide = effects.drop(columns=["kind", "role", "trace"]).dropna(axis="columns", how="all").astype(float)
            if wide.isna().any(axis=None):
                raise ValueError(f"The traces of {kind!r} have different layers. Average those that are alike.")
            intervals = zip(*bootstrap_interval(wide.to_numpy(), seed=seed), strict=True)
            for layer, mean, (low, high) in zip(wide.columns, wide.mean(), intervals, strict=True):
                rows.append((kind, role, layer, mean, low, high, len(wide)))
    return pd.DataFrame(rows, columns=["kind", "role", "layer", "mean", "ci_low", "ci_high", "n"])


def label(trace: CausalTrace) -> str:
    """The trace's kind, with the head's number, the severed sublayers, and the method unless it is exact."""
    config = trace.config
    kind = config.kind if config.head is None else f"{config.kind} {config.head}"
    kind += f", {' and '.join(config.severed)} severed" if config.severed else ""
    return kind if config.method == "exact" else f"{kind} ({config.method})"


@checked
def average_total_effect(traces: Sequence[CausalTrace], *, seed: int = 0) -> pd.DataFrame:
    """The average total effect, clean minus corrupted, with its 95 % bootstrap interval over facts (paper section 2.2).

    Returns:
        A row for each kind: kind, mean, ci_low, ci_high, n. Kinds traced together share their clean and corrupted runs.

    Raises:
        ValueError: no traces.
    """
    check_seed(seed)
    if not traces:
        raise ValueError("traces is empty, expected one CausalTrace or more.")
    rows = []
    for kind in dict.fromkeys(map(label, traces)):
        effects = np.array([[trace.total_effect] for trace in traces if label(trace) == kind])
        low, high = bootstrap_interval(effects, seed=seed)
        rows.append((kind, effects.mean(), low[0], high[0], len(effects)))
    return pd.DataFrame(rows, columns=["kind", "mean", "ci_low", "ci_high", "n"])
