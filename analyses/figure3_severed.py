"""Paper figure 3: what the state at the subject's last token brings back, layer by layer, whole and severed.

Severed are the MLPs or the attentions above it: held at their corrupted values. Averages over facts.

Traces are kept as they are made, so a run that was stopped goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.data.records import subject_range
from rome_lens.plots.style import LAYOUT, PANEL_TITLE, WHISKERS, with_n

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.options import add_fact_arguments, chosen_facts, parsed, parser, read_csv, write_csv

SEVERED = ((), ("mlp",), ("attn",))
NAMES = {"resid": "as it is", "resid, mlp severed": "MLPs severed", "resid, attn severed": "attention severed"}
COLOURS = {"resid": "#6a51a3", "resid, mlp severed": "#009e73", "resid, attn severed": "#d55e00"}


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    return {"figure3": plot_severed(read_csv(folder / "severed.csv"))}


def plot_severed(frame: pd.DataFrame) -> go.Figure:
    """A panel of bars with their intervals for each kind of `average_effects`, all of one role."""
    parts = list(frame.groupby("kind", sort=False))
    names = [NAMES.get(str(kind), str(kind)) for kind, _ in parts]
    figure = make_subplots(cols=len(parts), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=names)
    figure.update_annotations(**PANEL_TITLE)
    for place, ((kind, part), name) in enumerate(zip(parts, names, strict=True), start=1):
        figure.add_bar(
            x=part["layer"],
            y=part["mean"],
            name=name,
            showlegend=False,
            marker_color=COLOURS.get(str(kind), "#333333"),
            error_y={
                "symmetric": False,
                "array": part["ci_high"] - part["mean"],
                "arrayminus": part["mean"] - part["ci_low"],
                **WHISKERS,
                "width": 2,
            },
            hovertemplate=f"{kind}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
            row=1,
            col=place,
        )
    figure.update_xaxes(title=with_n("layer", frame))
    figure.update_yaxes(zeroline=True, zerolinewidth=1).update_yaxes(title="average indirect effect", col=1)
    return figure.update_layout(**LAYOUT, bargap=0.25, height=340)


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
