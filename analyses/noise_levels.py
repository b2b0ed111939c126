"""The appendix's comparison of corruptions: the effects of restored MLPs under noise of several strengths.

The noise is Gaussian noise of several strengths, and uniform of the paper's strength.

`report.csv` tells where each peaks, and how far it agrees with the paper's: Spearman's rank correlation over roles and
layers. Conclusions can depend on such choices (Zhang and Nanda 2024, arXiv 2309.16042).
Traces are kept as they are made, so a run that was stopped goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

import rome_lens as rl
from rome_lens.plots.style import LAYOUT, LEGEND_ABOVE, ROLE_COLOURS, with_n

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.options import add_fact_arguments, chosen_facts, parsed, parser, read_csv, write_csv

PAPERS = 3.0
ROLES = ("last subject token", "last token")


def corruptions(sigmas: Sequence[float]) -> dict[str, rl.GaussianNoise | rl.locate.UniformNoise]:
    """The paper's first, which the others are compared with; the others from weak to strong."""
    strengths = [PAPERS, *sorted(set(sigmas) - {PAPERS})]
    gaussian = {f"Gaussian, {strength:g} sigma": rl.GaussianNoise(sigmas=strength) for strength in strengths}
    return gaussian | {f"uniform, {PAPERS:g} sigma": rl.locate.UniformNoise(sigmas=PAPERS)}


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    effects, report = read_csv(folder / "effects.csv"), read_csv(folder / "report.csv")
    return {
        "noise_levels": rl.plots.plot_average_effects(
            effects[effects["role"].isin(ROLES)], panel="role", line="corruption"
        ),
        "robustness": plot_robustness(report),
    }


def report_of(effects: pd.DataFrame) -> pd.DataFrame:
    """Where the effect of each corruption peaks, and how far its effects agree with those of the first."""
    tables = {
        name: part.set_index(["role", "layer"])["mean"] for name, part in effects.groupby("corruption", sort=False)
    }
    first = next(iter(tables.values()))
    rows = [
        (name, *effect.idxmax(), effect.max(), effect.rank().corr(first.rank()))  # type: ignore[misc]
        for name, effect in tables.items()
    ]
    return pd.DataFrame(rows, columns=["corruption", "peak_role", "peak_layer", "peak_effect", "agreement"])


def plot_robustness(frame: pd.DataFrame) -> go.Figure:
    """Where the average effect peaks under each corruption: the layer across, the corruptions down, a colour for each
    role, and beside each point its agreement with the first.
    """
    figure = go.Figure()
    for i, (role, part) in enumerate(frame.groupby("peak_role", sort=False)):
        figure.add_scatter(
            x=part["peak_layer"],
            y=part["corruption"],
            mode="markers+text",
            name=str(role),
            showlegend=True,
            marker={"size": 11, "color": ROLE_COLOURS[i % len(ROLE_COLOURS)]},
            text=[f"{agreement:.2f}" for agreement in part["agreement"]],
            textposition="middle right",
            cliponaxis=False,
        )
    figure.update_layout(
        **LAYOUT,
        height=150 + 24 * len(frame),
        xaxis={
            "title": with_n("layer of the peak", frame) + "<br>beside it: agreement with the first",
            "range": [0, 1.2 * frame["peak_layer"].max() + 1],
        },
        yaxis={"categoryorder": "array", "categoryarray": frame["corruption"][::-1]},
        legend=LEGEND_ABOVE,
    )
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/noise_levels")
    add_fact_arguments(arguments, count=8)
    arguments.add_argument("--sigmas", type=float, nargs="+", default=[1.0, 2.0, 5.0], help="strengths besides 3")
    arguments.add_argument("--kind", choices=("resid", "mlp", "attn"), default="mlp", help="of the restored states")
    arguments.add_argument("--window", type=int, default=10, help="layers at once, for mlp and attn")
    options = parsed(arguments, argv, full={"count": 1000, "samples": 10})

    model = rl.load_model(options.model)
    facts, traces = chosen_facts(model, options), options.out / "traces"
    chosen = corruptions(options.sigmas)
    frames = []
    for name, corruption in chosen.items():
        settings = {"corruption": corruption, "window": options.window, "samples": options.samples}
        made = rl.trace_facts(model, facts, kinds=[options.kind], out=traces, **settings)
        total = rl.locate.average_total_effect(made.traces)["mean"].iloc[0]
        frames.append(rl.average_effects(made.traces).assign(corruption=name, total_effect=total))
    effects = pd.concat(frames)
    report = report_of(effects).assign(n=effects["n"].max())
    write_csv(report, options.out / "report.csv")
    write_csv(effects, options.out / "effects.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model, corruptions={name: repr(corruption) for name, corruption in chosen.items()})
    print(report.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
