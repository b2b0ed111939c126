"""v*: the library's search against whole forward and backward passes over all prompts in every step, in one run.

Both search on the same laid-out model with the same contexts and numbers, and neither stops early. The floor is the
time of the operations that no method can leave out (blocks after the edited one, positions from the subject's last
token on, one forward and one backward pass a step), at the measured speed of matrix products. A second table: seconds
a request when several are searched for at once. A third: what is saved by a search that ends once the target was the
top token for three steps in a row (ENCORE's early stop).
"""

from collections.abc import Sequence
from dataclasses import replace
from math import exp
from statistics import fmean

import pandas as pd
import torch

import rome_lens as rl
from rome_lens.edit.search.suffix import Prompts, tokenize_prompts
from rome_lens.edit.search.value import optimise_value, optimise_values
from rome_lens.models import Model

from .common.manifest import write_manifest
from .common.measuring import matrix_product_speed, measured, operations_per_token
from .common.options import parser, write_csv
from .plain.editing import plain_value

REQUESTS = (
    rl.EditRequest("The capital of {} is the city of", "France", target="Lyon"),
    rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target="Rome"),
    rl.EditRequest("{} plays the sport of", "Michael Jordan", target="soccer"),
    rl.EditRequest("The mother tongue of {} is", "Danielle Darrieux", target="English"),
)
COMPARED = REQUESTS[:2]
CONTEXT_LENGTHS = ((5, 10), (10, 10))


def necessary_operations(model: Model, layer: int, prompts: Prompts, steps: int) -> float:
    """Of one search: what stands before the tails once, and the tails forward in every step and backward in all but
    the last; a backward pass to the activations alone costs what a forward pass costs.
    """
    block, unembedding = operations_per_token(model)
    later = model.cfg.n_layers - layer - 1
    tokens, before = sum(map(len, prompts.rows)), sum(prompts.subject)
    once = (tokens * (layer + 1) + before * later) * block
    each = (tokens - before) * later * block + (prompts.contexts * len(prompts.target) + 1) * unembedding
    return once + (2 * steps - 1) * each


def compare(
    model: Model,
    layer: int,
    request: rl.EditRequest,
    contexts: tuple[str, ...],
    config: rl.RomeConfig,
    speed: float,
) -> dict[str, object]:
    """The library's v* and the plain one for the same request."""
    prompts = tokenize_prompts(model, request, contexts)
    value, ours = measured(lambda: optimise_value(model, layer, request, contexts, config))
    vector, plain = measured(lambda: plain_value(model, layer, request, contexts, config, progress=True))
    floor = necessary_operations(model, layer, prompts, config.steps) / speed
    return {
        "model": model.cfg.model_name,
        "layer": layer,
        "prompt": request.text,
        "tokens": len(prompts.rows[0]),
        "contexts": prompts.contexts,
        "steps": config.steps,
        "ours_seconds": ours.seconds,
        "plain_seconds": plain.seconds,
        "ratio": plain.seconds / ours.seconds,
        "relative_difference": ((value.vector - vector).norm() / vector.norm()).item(),
        "floor_seconds": floor,
        "times_the_floor": ours.seconds / floor,
        "ours_peak_mb": ours.peak_mb,
        "plain_peak_mb": plain.peak_mb,
    }


def batches(
    model: Model, layer: int, contexts: tuple[str, ...], config: rl.RomeConfig, sizes: tuple[int, ...]
) -> pd.DataFrame:
    """Seconds for each of the same requests, searched for by so many at once."""
    rows = []
    for size in sizes:
        seconds = 0.0
        for start in range(0, len(REQUESTS), size):
            some = REQUESTS[start : start + size]
            _, spent = measured(
                lambda some=some: optimise_values(  # type: ignore[misc]
                    model, layer, some, contexts, config, tokens_per_batch=1_000_000
                )
            )
            seconds += spent.seconds
        rows.append((size, seconds / len(REQUESTS)))
    return pd.DataFrame(rows, columns=["requests_at_once", "seconds_a_request"])


def early_stop(model: Model, layer: int, contexts: tuple[str, ...], config: rl.RomeConfig) -> pd.DataFrame:
    """Seconds and steps for each of the same requests, and the target's mean probability at the end, without an early
    stop and with one; last, how many times as fast.
    """
    rows = []
    for steps_on_top in (None, 3):
        numbers = replace(config, steps_on_top=steps_on_top)
        values, spent = measured(
            lambda numbers=numbers: [  # type: ignore[misc]
                optimise_value(model, layer, request, contexts, numbers) for request in REQUESTS
            ]
        )
        steps, probability = (fmean(each) for each in zip(*((v.steps, exp(-v.nll)) for v in values), strict=True))
        rows.append((steps_on_top, steps, spent.seconds / len(REQUESTS), probability))
    frame = pd.DataFrame(rows, columns=["steps_on_top", "steps", "seconds_a_request", "target_probability"])
    return frame.assign(ratio=frame["seconds_a_request"].iloc[0] / frame["seconds_a_request"])


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/benchmark_editing")
    arguments.add_argument("--layer", type=int, default=4)
    arguments.add_argument("--steps", type=int, default=20)
    options = arguments.parse_args(argv)

    model = rl.load_model(options.model)
    speed = matrix_product_speed()
    print(f"matrix products: {speed / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} threads")
    contexts = rl.edit.sample_contexts(model, CONTEXT_LENGTHS)
    config = rl.RomeConfig(steps=options.steps, early_stop_loss=0.0)  # no loss is below 0
    frame = pd.DataFrame([compare(model, options.layer, each, contexts, config, speed) for each in COMPARED])
    several = batches(model, options.layer, contexts, config, (1, 2, 4))
    stopped = early_stop(model, options.layer, contexts, rl.RomeConfig(steps=options.steps))
    for name, table in (("against_plain", frame), ("batches", several), ("early_stop", stopped)):
        write_csv(table, options.out / f"{name}.csv")
        print(table.round(8).to_string(index=False), end="\n\n")
    write_manifest(options, model)


if __name__ == "__main__":
    main()
