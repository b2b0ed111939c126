"""What one record of an evaluation costs, and how long many records would take on a larger model: an estimate.

Floating-point operations of whole records (scores before, edit, scores after) are counted on `--model` with torch's
counter and divided by its parameters. A larger model is taken to need so many operations for each parameter of its own,
which holds for matrix products and leaves out attention's own, and its device is taken to reach the same share of its
peak as this machine reaches of a large matrix product's speed. Both are guesses: small batches use a GPU less well.
"""

from collections.abc import Sequence

import pandas as pd
from torch.utils.flop_counter import FlopCounterMode

import rome_lens as rl
from rome_lens.evaluate.measuring import Method
from rome_lens.models import Model

from .common.manifest import write_manifest
from .common.measuring import matrix_product_speed, measured
from .common.methods import add_method_arguments, chosen_methods
from .common.options import add_record_arguments, chosen_records, parser, write_csv


def record_cost(model: Model, records: Sequence[rl.EditRecord], method: Method) -> tuple[float, float]:
    """Floating-point operations and seconds of a record, on average."""

    def work() -> None:
        rl.score_edits(model, records, method, progress=False)

    _, plain = measured(work)
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / len(records), plain.seconds / len(records)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/record_cost")
    add_method_arguments(arguments)
    arguments.add_argument("--parameters", type=float, default=6.05e9, help="of the larger model; GPT-J's")
    arguments.add_argument("--total", type=int, default=21_919, help="records to evaluate; CounterFact's")
    arguments.add_argument("--peak", type=float, default=19.5e12, help="operations a second; an A100's in float32")
    add_record_arguments(arguments, count=5)
    options = arguments.parse_args(argv)

    model = rl.load_model(options.model)
    records, speed = chosen_records(options), matrix_product_speed()
    parameters = sum(parameter.numel() for parameter in {p.data_ptr(): p for p in model.parameters()}.values())
    rows = []
    for name, method in chosen_methods(model, options).items():
        operations, seconds = record_cost(model, records, method)
        larger, share = operations / parameters * options.parameters, operations / seconds / speed
        row = {
            "method": name,
            "operations_per_record": operations,
            "seconds_per_record": seconds,
            "share_of_peak": share,
            "parameters": parameters,
            "larger_operations_per_record": larger,
            "larger_seconds_per_record": larger / (share * options.peak),
            "larger_days_of_one_worker": larger / (share * options.peak) * options.total / 86_400,
        }
        rows.append(row)
    write_csv(pd.DataFrame(rows), options.out / "cost.csv")
    write_manifest(options, model)
    print(pd.DataFrame(rows).T.to_string(header=False))


if __name__ == "__main__":
    main()
