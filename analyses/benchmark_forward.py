"""One forward pass on a stock HookedTransformer against one whose weights are laid out as rome_lens stores them.

Both have the same weights and run in turn in one process; the table gives medians, their ratio, and the largest
difference between the logits.
"""

import copy
import time
from collections.abc import Sequence

import pandas as pd
import torch

import rome_lens as rl
from rome_lens.models import Model

from .common.manifest import write_manifest
from .common.options import parser, write_csv

PROMPT = "The Eiffel Tower is located in the city of"


def stock_copy(model: Model) -> Model:
    """The same model as HookedTransformer itself stores it."""
    stock = copy.deepcopy(model)
    for parameter in stock.parameters():
        parameter.data = parameter.data.contiguous()
    return stock


@torch.no_grad()
def compare(model: Model, prompts: int, repeats: int) -> dict[str, float]:
    """Seconds for one pass over `prompts` copies of the prompt, on both models in turn."""
    stock = stock_copy(model)
    tokens = model.to_tokens([PROMPT] * prompts)
    seconds: dict[str, list[float]] = {"stock": [], "laid out": []}
    for _ in range(repeats + 1):  # the first round warms up
        for name, each in (("stock", stock), ("laid out", model)):
            start = time.perf_counter()
            each(tokens)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: float(pd.Series(values[1:]).median()) for name, values in seconds.items()}
    return {
        "prompts": prompts,
        "tokens": tokens.shape[1],
        "stock_seconds": medians["stock"],
        "laid_out_seconds": medians["laid out"],
        "ratio": medians["stock"] / medians["laid out"],
        "largest_logit_difference": (stock(tokens) - model(tokens)).abs().max().item(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/benchmark_forward")
    arguments.add_argument("--prompts", type=int, nargs="+", default=[1, 11])
    arguments.add_argument("--repeats", type=int, default=15)
    options = arguments.parse_args(argv)

    model = rl.load_model(options.model)
    frame = pd.DataFrame([compare(model, prompts, options.repeats) for prompts in options.prompts])
    write_csv(frame, options.out / "forward.csv")
    write_manifest(options, model)
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
