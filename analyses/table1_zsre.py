"""Paper table 1: the scores of editing methods on zsRE, beside those of the model before the edit.

Each record is edited alone, and the weights are put back after it. Records of KnowEdit get KnowEdit's scores. Rows are
kept as they are measured, so that a run that was stopped goes on where it was. table.md is the table in the paper's
layout; table.csv has all scores with their intervals, records.csv each record's scores.
"""

from collections.abc import Sequence

import rome_lens as rl

from .common.manifest import write_manifest
from .common.methods import add_method_arguments, chosen_methods
from .common.options import add_run_arguments, parsed, parser, run_options, write_scores

BENCHMARKS = {
    "zsre": (rl.data.load_zsre, rl.evaluate.score_zsre),
    "knowedit": (rl.data.load_knowedit, rl.evaluate.score_knowedit),
}
PAPER = {"efficacy": 99.8, "paraphrase": 88.1, "specificity": 24.2}
SOURCE = "ROME on GPT-2 XL (paper, table 1)"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/table1_zsre")
    arguments.add_argument("records", help="a file of the benchmark; wiki_recent and wiki_counterfact are downloaded")
    arguments.add_argument("--benchmark", choices=BENCHMARKS, default="zsre", help="which schema and scores")
    add_method_arguments(arguments)
    arguments.add_argument("--skip", type=int, default=0, help="how many records to leave out at the start")
    arguments.add_argument("--count", type=int, default=30, help="how many records")
    add_run_arguments(arguments)
    options = parsed(arguments, argv, full={"count": 10_000})

    load, score = BENCHMARKS[options.benchmark]
    records = load(options.records, strict=False)[options.skip : options.skip + options.count]
    model = rl.load_model(options.model)
    frame = rl.score_edits(
        model if options.engine == "local" else options.model,
        records,
        chosen_methods(model, options),
        score=score,
        before=rl.evaluate.locality_predictions,
        **run_options(options),
    )
    write_scores(frame, options.out, paper=PAPER, source=SOURCE)
    write_manifest(options, model)


if __name__ == "__main__":
    main()
