"""Paper table 4: the scores of ROME on CounterFact records, beside those of the model before the edit.

Each record is edited alone, and the weights are put back after it. `--records` reads CounterFact's own file; without it
the facts that ship with the package are used. `--snippets` adds what the edited model writes: GE, RS and essence.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transformer_lens import HookedTransformer

import rome_lens as rl
from analyses.files import add_record_arguments, chosen_records, means, parser, write_csv

PRESETS: dict[str, Callable[[], rl.RomeConfig]] = {"consistent": rl.RomeConfig, "reference": rl.RomeConfig.reference}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m")
    arguments.add_argument("--preset", choices=PRESETS, default="consistent", help="see RomeConfig")
    arguments.add_argument("--covariance", type=Path, help="a saved KeyCovariance; the shipped one if absent")
    arguments.add_argument("--snippets", type=Path, help="texts in attribute_snippets.json's schema; takes far longer")
    arguments.add_argument("--out", type=Path, default=Path("results/table4_counterfact.csv"))
    add_record_arguments(arguments, count=30)
    options = arguments.parse_args()

    model = rl.load_model(options.model)
    records = chosen_records(options)
    covariance = rl.KeyCovariance.load(options.covariance) if options.covariance else None
    config = PRESETS[options.preset]()
    config = replace(config, contexts=rl.sample_contexts(model, config.context_lengths, seed=config.seed))
    references = rl.ReferenceTexts.fit(rl.load_attribute_snippets(options.snippets)) if options.snippets else None

    def score(model: HookedTransformer, record: rl.EditRecord) -> dict[str, float]:
        written = rl.score_generation(model, record, references=references) if references else {}
        return rl.score_record(model, record) | written

    frame = rl.evaluate(
        model,
        records,
        score=score,
        method=lambda record: rl.rome(model, record.request, covariance=covariance, config=config, progress=False),
        name=f"rome, {options.preset}",
    )
    summary = rl.summarize(frame)
    write_csv(summary, options.out)
    write_csv(frame, options.out.with_suffix(".records.csv"))
    print(means(summary))


if __name__ == "__main__":
    main()
