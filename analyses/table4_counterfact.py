"""Paper table 4: the scores of editing methods on CounterFact records, beside those of the model before the edit.

Each record is edited alone, and the weights are put back after it. `--records` reads CounterFact's own file; without it
the facts that ship with the package are used. `--snippets` adds what the edited model writes: GE, RS and essence. Rows
are kept as they are measured, so that a run that was stopped goes on where it was. table.md is the table in the paper's
layout; table.csv has the same with all intervals, records.csv each record's scores.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import plotly.graph_objects as go

import rome_lens as rl
from rome_lens.models import Model

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.methods import add_method_arguments, chosen_methods
from .common.options import (
    add_record_arguments,
    add_run_arguments,
    chosen_records,
    parsed,
    parser,
    read_csv,
    run_options,
    write_scores,
)

PAPER = {"S": 89.2, "ES": 100.0, "EM": None, "PS": 96.4, "PM": None, "NS": 75.4, "NM": None, "GE": 621.9, "RS": 41.9}
SOURCE = "ROME on GPT-2 XL (paper, table 4)"


def score_with_texts(
    model: Model, record: rl.EditRecord, *, references: rl.evaluate.ReferenceTexts
) -> dict[str, float]:
    """The scores of the prompts, and of what the model writes."""
    return rl.evaluate.score_record(model, record) | rl.evaluate.score_generation(model, record, references=references)


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    return {"scores": rl.plots.plot_scores(read_csv(folder / "table.csv"))}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/table4_counterfact")
    add_method_arguments(arguments)
    arguments.add_argument("--snippets", type=Path, help="texts in attribute_snippets.json's schema; takes far longer")
    add_run_arguments(arguments)
    add_record_arguments(arguments, count=30)
    options = parsed(arguments, argv, full={"count": 7500})

    model = rl.load_model(options.model)
    references = (
        rl.evaluate.ReferenceTexts.fit(rl.data.load_attribute_snippets(options.snippets)) if options.snippets else None
    )
    frame = rl.score_edits(
        model if options.engine == "local" else options.model,
        chosen_records(options),
        chosen_methods(model, options),
        score=partial(score_with_texts, references=references) if references else rl.evaluate.score_record,
        **run_options(options),
    )
    write_scores(frame, options.out, paper=PAPER, source=SOURCE)
    write_figures(figures(options.out), options.out)
    write_manifest(options, model)


if __name__ == "__main__":
    main()
