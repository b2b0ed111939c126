"""Paper figure 1: heatmaps of one fact's causal traces, for residual states, MLPs and attention.

Without --prompt, the fact is number --index of --facts. Traces are kept as they are made, so a run that was stopped
goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

import rome_lens as rl

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.options import facts_of, parser, read_csv, write_csv


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    traces, heads = read_csv(folder / "traces.csv"), read_csv(folder / "heads.csv")
    answer, clean = str(traces["answer"].iloc[0]), float(traces["clean"].iloc[0])
    return {
        "figure1": rl.plots.plot_traces(traces, answer=answer, clean=clean),
        "trace": rl.plots.plot_trace(traces[traces["kind"] == "mlp"], answer=answer, clean=clean),
        "heads": rl.plots.plot_heads(heads, answer=answer, clean=clean),
    }


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/figure1")
    arguments.add_argument("--facts", type=Path, help="a file in known_1000.json's schema; the package's if absent")
    arguments.add_argument("--index", type=int, default=0, help="which fact of it")
    arguments.add_argument("--prompt", help="a fact of your own: a text with {} in the subject's place")
    arguments.add_argument("--subject", help="its subject")
    arguments.add_argument("--answer", help="its answer; the model's own if absent")
    arguments.add_argument("--samples", type=int, default=10, help="corrupted runs for each number")
    arguments.add_argument("--seed", type=int, default=1, help="of the corruption")
    options = arguments.parse_args(argv)

    own = options.prompt is not None
    fact = rl.Fact(options.prompt, options.subject, options.answer) if own else facts_of(options.facts)[options.index]
    model = rl.load_model(options.model)
    traces = rl.trace_facts(
        model,
        [fact],
        out=options.out / "traces",
        only_predicted=False,
        samples=options.samples,
        corruption=rl.GaussianNoise(seed=options.seed),
    ).traces
    heads = rl.locate.trace_heads(model, fact, config=traces[0].config)
    frame = pd.concat([trace.to_frame() for trace in traces])
    write_csv(frame.assign(answer=heads.answer, clean=heads.clean), options.out / "traces.csv")
    write_csv(heads.to_frame().assign(answer=heads.answer, clean=heads.clean), options.out / "heads.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model, prompt=fact.text, corruption=repr(traces[0].config.corruption))
    for trace in traces:
        best = trace.to_frame().nlargest(1, "prob").iloc[0]
        print(
            f"{trace.kind}: {trace.clean:.3f} clean, {trace.corrupted:.3f} corrupted, {best['prob']:.3f} with "
            f"{best['token'].strip()!r} restored at layer {best['layer']}"
        )


if __name__ == "__main__":
    main()
