"""Paper figure 2 and the appendix's line plots: average indirect effects by token role and layer.

For residual states, MLPs and attention.

Traced are the first --count facts that the model predicts. Traces are kept as they are made, so a run that was stopped
goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

import rome_lens as rl

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.options import add_fact_arguments, chosen_facts, parsed, parser, read_csv, write_csv


def peaks(effects: pd.DataFrame) -> pd.DataFrame:
    """The layer of the largest average effect, for each kind and role."""
    return effects.loc[effects.groupby(["kind", "role"], sort=False)["mean"].idxmax()]


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    effects = read_csv(folder / "average_effects.csv")
    return {"figure2": rl.plots.plot_effect_maps(effects), "lines": rl.plots.plot_average_effects(effects)}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/figure2")
    add_fact_arguments(arguments, count=20)
    options = parsed(arguments, argv, full={"count": 1000, "samples": 10})

    model = rl.load_model(options.model)
    facts = chosen_facts(model, options)
    made = rl.trace_facts(model, facts, out=options.out / "traces", samples=options.samples)
    effects, total = rl.average_effects(made.traces), rl.locate.average_total_effect(made.traces)
    write_csv(effects, options.out / "average_effects.csv")
    write_csv(total, options.out / "average_total_effect.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model, corruption=repr(made.traces[0].config.corruption))
    print(total.to_string(index=False), end="\n\n")
    print(peaks(effects).to_string(index=False))


if __name__ == "__main__":
    main()
