"""Scoring CounterFact records: `score_record` against whole forward passes, in one run.

The plain ways are one forward pass for each prompt and target, and one padded batch of every prompt with every target,
both with the logits of every position, on the same laid-out model; they have to give the same scores. The floor is the
time of the operations for every distinct beginning of a text, each once, at the measured speed of matrix products.
"""

from collections.abc import Sequence

import pandas as pd
import torch

import rome_lens as rl
from rome_lens.models import Model

from .common.manifest import write_manifest
from .common.measuring import matrix_product_speed, measured, operations_per_token
from .common.options import add_record_arguments, chosen_records, parser, write_csv
from .plain.evaluation import one_batch, one_pass_each, plain_scores

TOLERANCE = 1e-5


def necessary_operations(model: Model, record: rl.EditRecord) -> float:
    """Blocks for each distinct beginning of what is read, and the unembedding where a target token is predicted."""
    block, unembedding = operations_per_token(model)
    beginnings, predicting = set(), set()
    for prompt in (record.request.text, *record.paraphrase_prompts, *record.neighborhood_prompts):
        length = model.to_tokens(prompt).shape[1]
        for target in (record.request.target, record.target_true):
            read = tuple(model.to_tokens(f"{prompt} {target}")[0, :-1].tolist())
            beginnings |= {read[:end] for end in range(1, len(read) + 1)}
            predicting |= {read[:end] for end in range(length, len(read) + 1)}
    return len(beginnings) * model.cfg.n_layers * block + len(predicting) * unembedding


def compare(model: Model, record: rl.EditRecord, speed: float) -> dict[str, object]:
    """One record, scored three times.

    Raises:
        ValueError: the scores differ.
    """
    scores, ours = measured(lambda: rl.evaluate.score_record(model, record))
    batched, batch = measured(lambda: plain_scores(model, record, one_batch))
    single, each = measured(lambda: plain_scores(model, record, one_pass_each))
    difference = max(abs(scores[name] - plain[name]) for plain in (batched, single) for name in scores)
    if not difference < TOLERANCE:
        raise ValueError(
            f"The scores of record {record.case_id} differ by {difference}: {scores}, {batched}, {single}."
        )
    floor = necessary_operations(model, record) / speed
    return {
        "case_id": record.case_id,
        "prompts": 1 + len(record.paraphrase_prompts) + len(record.neighborhood_prompts),
        "ours_seconds": ours.seconds,
        "one_pass_each_seconds": each.seconds,
        "one_batch_seconds": batch.seconds,
        "ratio_to_one_pass_each": each.seconds / ours.seconds,
        "ratio_to_one_batch": batch.seconds / ours.seconds,
        "largest_difference": difference,
        "floor_seconds": floor,
        "ours_peak_mb": ours.peak_mb,
        "one_batch_peak_mb": batch.peak_mb,
    }


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/benchmark_evaluation")
    add_record_arguments(arguments, count=10)
    options = arguments.parse_args(argv)

    model = rl.load_model(options.model)
    records = chosen_records(options)
    speed = matrix_product_speed()
    print(f"matrix products: {speed / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} threads")
    rl.evaluate.score_record(model, records[0])  # warms up
    table = pd.DataFrame([compare(model, record, speed) for record in records])
    seconds = table.filter(like="_seconds").sum()
    ours = seconds["ours_seconds"]
    total = {
        "case_id": "all",
        "prompts": table["prompts"].sum(),
        **seconds,
        "ratio_to_one_pass_each": seconds["one_pass_each_seconds"] / ours,
        "ratio_to_one_batch": seconds["one_batch_seconds"] / ours,
        **table[["largest_difference", "ours_peak_mb", "one_batch_peak_mb"]].max(),
    }
    table = pd.concat([table, pd.DataFrame([total])], ignore_index=True)
    write_csv(table, options.out / "records.csv")
    write_manifest(options, model)
    print(table.round(8).to_string(index=False))


if __name__ == "__main__":
    main()
