"""The same edits under several protocols: what each number says of them.

Each record is edited alone by each method, and the edit is scored under all protocols at once. Files of any schema that
`load_records` knows may be given: --records qaedit.json counterfact.json takes --count of each. by_protocol.csv has the
protocols side by side with 95 % intervals over records, for each file, table.csv the means over kinds of question among
it, and scores.csv each record's scores.
Rows are kept as they are measured, so that a run that was stopped goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

import rome_lens as rl

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.methods import add_method_arguments, chosen_methods
from .common.options import add_run_arguments, parsed, parser, read_csv, run_options, write_csv

DEFAULT = ("probability", "teacher_forced", "generated", "generated_contains")


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    scores = read_csv(folder / "scores.csv").groupby("data", sort=False)
    return {str(name): rl.plots.plot_scores(rl.summarize(frame)) for name, frame in scores}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/protocols")
    arguments.add_argument("--records", type=Path, nargs="+", required=True, help="files of records, of any schema")
    arguments.add_argument("--count", type=int, default=30, help="how many records of each file")
    arguments.add_argument("--protocols", nargs="+", choices=rl.evaluate.PROTOCOLS, default=list(DEFAULT))
    add_method_arguments(arguments)
    add_run_arguments(arguments)
    options = parsed(arguments, argv, full={"count": None})

    model = rl.load_model(options.model)
    methods = chosen_methods(model, options)
    run = run_options(options)
    frames = []
    for path in options.records:
        frame = rl.score_edits(
            model if options.engine == "local" else options.model,
            rl.load_records(path, strict=False)[: options.count],
            methods,
            protocols=options.protocols,
            **run | {"out": run["out"] / path.stem},
        )
        frames.append(frame.assign(data=path.stem))
    scores = pd.concat(frames, ignore_index=True)
    tables = [rl.evaluate.by_protocol(frame).assign(data=name) for name, frame in scores.groupby("data", sort=False)]
    table = pd.concat(tables, ignore_index=True)
    table = table[["data", *table.columns.drop("data")]]
    write_csv(scores, options.out / "scores.csv")
    write_csv(table, options.out / "by_protocol.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model)
    shown = table[table["metric"].isin(["efficacy", "paraphrase", "portability", "locality"])]
    write_csv(shown, options.out / "table.csv")
    print(shown[["data", "method", "metric", "n", *options.protocols]].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
