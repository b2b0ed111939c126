"""Paper table 1: the scores of ROME and of fine-tuning on zsRE, beside those of the model before the edit.

Each record is edited alone, and the weights are put back after it. Records of KnowEdit get KnowEdit's scores.
"""

from pathlib import Path

import pandas as pd

import rome_lens as rl
from analyses.files import parser, write_scores
from analyses.methods import CHOICES, chosen_method
from rome_lens.evaluate.sequence import Method

BENCHMARKS = {"zsre": (rl.load_zsre, rl.score_zsre), "knowedit": (rl.load_knowedit, rl.score_knowedit)}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("records", help="a file of the benchmark; wiki_recent and wiki_counterfact are downloaded")
    arguments.add_argument("--benchmark", choices=BENCHMARKS, default="zsre", help="which schema and scores")
    arguments.add_argument("--model", default="smollm2-135m")
    arguments.add_argument("--presets", nargs="+", choices=CHOICES, default=["consistent"])
    arguments.add_argument("--covariance", type=Path, help="a saved KeyCovariance; the shipped one if absent")
    arguments.add_argument("--mend-editor", type=Path, help="what analyses.train_mend saved; for mend")
    arguments.add_argument("--skip", type=int, default=0, help="how many records to leave out at the start")
    arguments.add_argument("--count", type=int, default=30, help="how many records")
    arguments.add_argument("--out", type=Path, default=Path("results/table1_zsre.csv"))
    options = arguments.parse_args()

    load, score = BENCHMARKS[options.benchmark]
    records = load(options.records, strict=False)[options.skip : options.skip + options.count]
    model = rl.load_model(options.model)
    covariance = rl.KeyCovariance.load(options.covariance) if options.covariance else None
    frames = []
    for preset in options.presets:
        make = chosen_method(preset, model, covariance, options.mend_editor)

        def edit(record: rl.QuestionRecord, make: Method = make) -> rl.Edit:
            return make(model, record.request)

        frames.append(
            rl.evaluate(model, records, method=edit, score=score, before=rl.locality_predictions, name=preset)
        )
    frame = pd.concat(frames).drop_duplicates(["case_id", "method", "metric"])  # "base" is there for each preset
    write_scores(frame, options.out)


if __name__ == "__main__":
    main()
