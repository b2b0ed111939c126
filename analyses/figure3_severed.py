"""Paper figure 3: what the state at the subject's last token brings back, layer by layer, whole and severed.

Severed are the MLPs or the attentions above it: held at their corrupted values. Averages over facts.

Traces are kept as they are made, so a run that was stopped goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.data.records import subject_range

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.options import add_fact_arguments, chosen_facts, parsed, parser, read_csv, write_csv

SEVERED = ((), ("mlp",), ("attn",))


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    return {"figure3": rl.plots.plot_severed(read_csv(folder / "severed.csv"))}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/figure3")
    add_fact_arguments(arguments, count=20)
    options = parsed(arguments, argv, full={"count": 1000, "samples": 10})

    model = rl.load_model(options.model)
    traces: list[rl.CausalTrace] = []
    for fact in tqdm(chosen_facts(model, options), desc="severed traces", unit="fact"):
        last = subject_range(model, fact)[1][-1]
        for severed in SEVERED:
            traces += rl.trace_facts(
                model,
                [fact],
                kinds=["resid"],
                out=options.out / "traces",
                positions=[last],
                severed=severed,
                samples=options.samples,
                progress=False,
            ).traces
    effects = rl.average_effects(traces)
    write_csv(effects, options.out / "severed.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model, corruption=repr(traces[0].config.corruption))
    print(effects.loc[effects.groupby("kind", sort=False)["mean"].idxmax()].to_string(index=False))


if __name__ == "__main__":
    main()
