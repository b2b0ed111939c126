"""The appendix's comparison of corruptions: the effects of restored MLPs under noise of several strengths.

The noise is Gaussian noise of several strengths, and uniform of the paper's strength.

`report.csv` tells where each peaks and how far it agrees with the paper's (see `rl.locate.robustness_report`).
Traces are kept as they are made, so a run that was stopped goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

import rome_lens as rl

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
        "noise_levels": rl.plots.plot_noise_levels(effects[effects["role"].isin(ROLES)]),
        "robustness": rl.plots.plot_robustness(report),
    }


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
    report = rl.locate.robustness_report(
        model,
        facts,
        kind=options.kind,
        corruptions=chosen,
        metrics=["prob"],
        windows=[options.window],
        samples=options.samples,
        out=traces,
    )
    frames = []
    for name, corruption in chosen.items():  # what the report has traced, read from the folder
        kept = {"corruption": corruption, "window": options.window, "samples": options.samples, "progress": False}
        made = rl.trace_facts(model, facts, kinds=[options.kind], out=traces, **kept)
        total = rl.locate.average_total_effect(made.traces)["mean"].iloc[0]
        frames.append(rl.average_effects(made.traces).assign(corruption=name, total_effect=total))
    effects = pd.concat(frames)
    write_csv(report, options.out / "report.csv")
    write_csv(effects, options.out / "effects.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model, corruptions={name: repr(corruption) for name, corruption in chosen.items()})
    print(report.drop(columns=["kind", "metric", "window"]).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
