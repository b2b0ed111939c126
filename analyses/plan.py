"""Forecasts the memory and the time of tracing and editing a model, from its shape alone: nothing is loaded.

`--model` is one of the shapes that the package has, a folder with a config.json, or that file. Operations are counted;
their speed is measured now, with products of the MLP's size in the same dtype and on the same device. Memory is what is
held at most: for loading all of it, for all else what comes on top of the loaded weights.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoConfig, PretrainedConfig

from rome_lens import RomeConfig
from rome_lens.evaluate import cost
from rome_lens.models import Kind
from rome_lens.models.loading.shape import Shape, shape_of_config

from .common.options import program

SHAPES = json.loads((resources.files("rome_lens") / "data/builtin/shapes.json").read_text(encoding="utf-8"))
KINDS: tuple[Kind, ...] = ("resid", "mlp", "attn")
DTYPES = ("float32", "bfloat16", "float16")
_BATCH = 4096  # tokens of a covariance that are run at once
_KEYS_A_NEURON = 10  # as `recommend_layers` collects
_MOST_ROWS = 512  # of a product that is timed: more are hardly faster


def configuration(name: str) -> PretrainedConfig:
    """The configuration of a shape of the package, by its name or the beginning of it; or out of a folder or file.

    Raises:
        ValueError: there is none, or it is not one of Hugging Face's.
    """
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if file.is_file():
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            return AutoConfig.for_model(fields.pop("model_type"), **fields)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{file} is not a config.json of a model that transformers knows ({error}).") from error
    found = [each for each in SHAPES if each.startswith(name.lower())]
    if len(found) != 1:
        known = ", ".join(SHAPES)
        raise ValueError(
            f"--model is {name!r}, expected the beginning of one of {known}, or a folder with a config.json."
        )
    fields = {field: value for field, value in SHAPES[found[0]].items() if field not in ("source", "model_type")}
    return AutoConfig.for_model(SHAPES[found[0]]["model_type"], **fields)


def forecast(
    shape: Shape,
    *,
    layer: int,
    prompt: cost.Prompt,
    samples: int,
    itemsize: int,
    speed: Callable[[int], float],
    tokens: int | None = None,
) -> pd.DataFrame:
    """A row for each piece of work: work, teraflops, seconds, gib.

    `speed` gives the operations a second of products of so many rows; `tokens` are the covariance's, 10 d_mlp if None.
    """
    config, tokens = RomeConfig(), tokens or _KEYS_A_NEURON * shape.d_mlp
    contexts = cost.in_contexts(prompt, 1, config)
    rows: list[tuple[str, list[tuple[float, int]], float]] = [("loading", [], cost.loading_bytes(shape, itemsize))]
    for kind in KINDS:
        operations = cost.trace_operations(shape, prompt, kind=kind, samples=samples)
        held = cost.trace_bytes(shape, prompt, itemsize=itemsize, samples=samples)
        work = [(operations, cost.trace_rows(shape, prompt, samples=samples))]
        rows.append((f"a trace ({kind}, {samples} samples)", work, held))
    operations = cost.covariance_operations(shape, [layer], tokens, length=256)
    held = cost.covariance_bytes(shape, 1, itemsize=itemsize, batch=_BATCH)
    rows.append((f"a covariance ({tokens} tokens)", [(operations, min(tokens, _BATCH))], held))
    operations = cost.search_operations(shape, contexts, layer, steps=config.steps)
    work = [(operations, cost.search_rows(contexts)), (cost.solving_operations(shape), _MOST_ROWS)]
    held = cost.search_bytes(shape, contexts, layer, itemsize=itemsize)
    rows.append(("an edit (rome)", [*work, *cost.sampling_work(shape, config)], held))
    used = {min(number, _MOST_ROWS) for _, work, _ in rows for _, number in work}
    speeds = {number: speed(number) for number in used}
    return pd.DataFrame(
        [
            {
                "work": name,
                "teraflops": sum(operations for operations, _ in work) / 1e12 if work else None,
                "seconds": sum(each / speeds[min(number, _MOST_ROWS)] for each, number in work) if work else None,
                "gib": held / 2**30,
            }
            for name, work, held in rows
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    shown = argparse.ArgumentDefaultsHelpFormatter
    arguments = argparse.ArgumentParser(program(), description=__doc__, formatter_class=shown)
    arguments.add_argument("--model", default="gpt2-xl", help=f"{', '.join(SHAPES)}; a folder; a config.json")
    arguments.add_argument("--dtype", choices=DTYPES, default="float32")
    arguments.add_argument("--device", default="cpu", help="whose speed is measured")
    arguments.add_argument("--layer", type=int, help="the edited layer; a third of the depth if absent")
    arguments.add_argument("--tokens", type=int, default=10, help="of the prompt, of which the first 4 are the subject")
    arguments.add_argument("--samples", type=int, default=10, help="corrupted runs of a trace")
    options = arguments.parse_args(argv)
    if options.tokens < 4 or options.samples < 1:
        arguments.error(f"--tokens is {options.tokens} and --samples {options.samples}, expected at least 4 and 1.")
    try:
        shape = shape_of_config(configuration(options.model))
    except ValueError as error:
        arguments.error(str(error))
    layer = shape.n_layers // 3 if options.layer is None else options.layer
    if not 0 <= layer < shape.n_layers:
        arguments.error(f"--layer is {layer}, but {options.model} has layers 0 to {shape.n_layers - 1}.")
    dtype = getattr(torch, options.dtype)
    speed = partial(cost.product_speed, shape, dtype=dtype, device=options.device)
    prompt = cost.Prompt(options.tokens, range(4))
    table = forecast(shape, layer=layer, prompt=prompt, samples=options.samples, itemsize=dtype.itemsize, speed=speed)
    print(
        f"{options.model}: {shape.parameters / 1e9:.2f}e9 numbers, {shape.parameters * dtype.itemsize / 2**30:.1f} GiB "
        f"in {options.dtype}. Large products run at {speed(_MOST_ROWS) / 1e9:.3g} GFLOP/s now; the layer is {layer}.\n"
    )
    print(table.to_string(index=False, na_rep="", float_format=lambda number: f"{number:.3g}"))


if __name__ == "__main__":
    main()
