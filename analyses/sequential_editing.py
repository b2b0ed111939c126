"""Many edits on top of each other: what is left of the earlier ones, of their neighbours and of the language model.

--records may be of any published schema, scored by its own scorer, without what that compares with the model before.
Every method has a folder below --out that keeps its edits and rows; a run that was stopped goes on from there. Methods
may run in several processes at once, and the tables and the figure are made of all that is in --out: checkpoints.csv
has the model before the first edit too, table.csv the checkpoints after edits.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

import rome_lens as rl

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.methods import PRESETS, add_closed_form_arguments, add_method_arguments, add_search_arguments
from .common.options import (
    add_perplexity_arguments,
    add_record_arguments,
    listed_records,
    parsed,
    parser,
    perplexity_text,
    read_csv,
    write_csv,
)
from .common.sequence_methods import SEQUENCE_CHOICES, sequence_methods
from .published_scores import OWN, Ways

IN_SEQUENCE = OWN | {"UnKEBench or EditEverything": Ways(score=rl.evaluate.score_mrlf)}
"""By schema, what is scored. Passages are asked about as in MRLF-Bench: their own scorer writes hundreds of tokens."""


def write_results(out: Path) -> pd.DataFrame:
    """The table and the figure of the sequences in the folders of `out`."""
    sequences = {path.parent.name: rl.evaluate.load_sequence(path.parent) for path in sorted(out.glob("*/rows.jsonl"))}
    frames = {
        name: pd.concat([getattr(each, name).assign(method=method) for method, each in sequences.items()])
        for name in ("edits", "checkpoints")
    }
    for name, frame in frames.items():
        write_csv(frame[["method", *frame.columns.drop("method")]], out / f"{name}.csv")
    write_csv(edited_only(read_csv(out / "checkpoints.csv")), out / "table.csv")
    write_figures(figures(out), out)
    return frames["checkpoints"]


def edited_only(checkpoints: pd.DataFrame) -> pd.DataFrame:
    """The checkpoints after an edit, with the perplexity before the first."""
    before = checkpoints[checkpoints["edits"] == 0].set_index("method")["perplexity"]
    edited = checkpoints[checkpoints["edits"] > 0]
    return edited.assign(base_perplexity=edited["method"].map(before))


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    return {"figure": rl.plots.plot_sequence(read_csv(folder / "checkpoints.csv"))}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/sequential_editing")
    add_method_arguments(arguments, default=list(PRESETS), choices=SEQUENCE_CHOICES)
    arguments.add_argument("--batch", type=int, default=1, help="how many records are written at once; 1 for ROME")
    arguments.add_argument(
        "--learning-rate", type=float, default=rl.edit.UltraEditConfig.learning_rate, help="of ultraedit"
    )
    arguments.add_argument(
        "--pilot", type=int, default=20, help="records after those edited that tell the anchor's norm"
    )
    add_closed_form_arguments(arguments)
    add_search_arguments(arguments)
    add_perplexity_arguments(arguments, tokens=20_000)
    arguments.add_argument("--checkpoints", type=int, nargs="+", default=[1, 10, 25, 50, 100])
    arguments.add_argument("--stop-factor", type=float, help="stop when the perplexity is so many times the first one")
    add_record_arguments(arguments, count=100)
    options = parsed(arguments, argv, full={"count": 1000, "checkpoints": [1, 10, 25, 50, 100, 250, 500, 1000]})

    model = rl.load_model(options.model)
    listed = listed_records(options, partial(rl.load_records, strict=False))
    own = IN_SEQUENCE.get(rl.data.schema_of(options.records)) if options.records else None
    pilot = listed[options.count :][: options.pilot] or listed[: options.pilot]
    for name, method in sequence_methods(model, options, [record.request for record in pilot]).items():
        sequence = rl.edit_sequence(
            model,
            listed[: options.count],
            out=options.out / name,
            method=method,
            batch=options.batch,
            score=own.score if own else None,
            checkpoints=options.checkpoints,
            text=perplexity_text(options),
            perplexity_tokens=options.perplexity_tokens,
            stop=rl.evaluate.StopRule(perplexity_factor=options.stop_factor),
        )
        print(f"{name}: {sequence.stopped or 'all edits were made'}")
    table = write_results(options.out)
    write_manifest(options, model)
    scores = [column for column in table if f"{column}_low" in table]
    columns = ["method", "edits", "n", *scores, "perplexity", "norm_growth"]
    print(table[columns].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
