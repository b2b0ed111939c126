"""How far the gradient approximation of a trace agrees with the exact one: rank correlation over cells, fact by fact.

Exact traces are kept in, and read from, the folder of figure2_average_effects.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import rome_lens as rl
from rome_lens.intervals import bootstrap_interval

from .common.manifest import write_manifest
from .common.options import add_fact_arguments, chosen_facts, parsed, parser, write_csv


def agreement(exact: rl.CausalTrace, approximate: rl.CausalTrace) -> tuple[float, bool]:
    """Spearman's rank correlation over the cells from the subject on, and whether the strongest cell is the same."""
    start = exact.subject_range[0]
    grids = [pd.Series(t.indirect_effect[start:].flatten().double().numpy()) for t in (exact, approximate)]
    return grids[0].rank().corr(grids[1].rank()), bool(grids[0].argmax() == grids[1].argmax())


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/attribution_agreement")
    add_fact_arguments(arguments, count=20)
    arguments.add_argument("--traces", type=Path, default=Path("results/figure2/traces"), help="a folder")
    options = parsed(arguments, argv, full={"count": 1000, "samples": 10})

    model = rl.load_model(options.model)
    facts = chosen_facts(model, options)
    exact = rl.trace_facts(model, facts, out=options.traces, samples=options.samples).traces
    approximate = rl.trace_facts(model, facts, method="attribution", samples=options.samples).traces
    rows = []
    for kind in dict.fromkeys(trace.kind for trace in exact):
        pairs = [agreement(a, b) for a, b in zip(exact, approximate, strict=True) if a.kind == kind]
        correlations = np.array([[correlation] for correlation, _ in pairs])
        low, high = bootstrap_interval(correlations)
        same = float(np.mean([match for _, match in pairs]))
        rows.append((kind, len(pairs), correlations.mean(), low[0], high[0], same))
    frame = pd.DataFrame(rows, columns=["kind", "n", "rank_correlation", "ci_low", "ci_high", "same_strongest_cell"])
    write_csv(frame, options.out / "agreement.csv")
    write_manifest(options, model)
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
