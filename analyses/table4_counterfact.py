"""Paper table 4: the scores of an editing method on CounterFact records, beside those of the model before the edit.

Each record is edited alone, and the weights are put back after it. `--records` reads CounterFact's own file; without it
the facts that ship with the package are used. `--snippets` adds what the edited model writes: GE, RS and essence.
"""

from pathlib import Path

from transformer_lens import HookedTransformer

import rome_lens as rl
from analyses.files import add_record_arguments, chosen_records, parser, write_scores
from analyses.methods import CHOICES, chosen_method


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m")
    arguments.add_argument("--preset", choices=CHOICES, default="consistent", help="ROME's two presets, or fine-tuning")
    arguments.add_argument("--covariance", type=Path, help="a saved KeyCovariance; the shipped one if absent")
    arguments.add_argument("--mend-editor", type=Path, help="what analyses.train_mend saved; for mend")
    arguments.add_argument("--snippets", type=Path, help="texts in attribute_snippets.json's schema; takes far longer")
    arguments.add_argument("--out", type=Path, default=Path("results/table4_counterfact.csv"))
    add_record_arguments(arguments, count=30)
    options = arguments.parse_args()

    model = rl.load_model(options.model)
    records = chosen_records(options)
    covariance = rl.KeyCovariance.load(options.covariance) if options.covariance else None
    edit = chosen_method(options.preset, model, covariance, options.mend_editor)
    references = rl.ReferenceTexts.fit(rl.load_attribute_snippets(options.snippets)) if options.snippets else None

    def score(model: HookedTransformer, record: rl.EditRecord) -> dict[str, float]:
        written = rl.score_generation(model, record, references=references) if references else {}
        return rl.score_record(model, record) | written

    frame = rl.evaluate(
        model,
        records,
        score=score,
        method=lambda record: edit(model, record.request),
        name=options.preset,
    )
    write_scores(frame, options.out)


if __name__ == "__main__":
    main()
