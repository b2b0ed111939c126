"""Forecasts the memory and the time of tracing and editing a model, from its shape alone: nothing is loaded.

`--model` is one of the shapes that the package has, a folder with a config.json, or that file. Operations are counted;
their speed is measured now, with one block of that shape in the same dtype and on the same device. Memory is what is
held at most: for loading all of it, for all else what comes on top of the loaded weights.
"""

import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch
from transformers import AutoConfig, PretrainedConfig

from rome_lens import RomeConfig, load_model
from rome_lens.models import Kind, run

from .common import cost
from .common.cost import Shape, shape_of_config
from .common.made_up import save_made_up
from .common.options import parser

SHAPES = json.loads((resources.files("rome_lens") / "data/builtin/shapes.json").read_text(encoding="utf-8"))
KINDS: tuple[Kind, ...] = ("resid", "mlp", "attn")
DTYPES = ("float32", "bfloat16", "float16")
_BATCH = 4096  # tokens of a covariance that are run at once
_LENGTH = 256  # of the pieces that it is collected from
_SHORT, _MOST_ROWS, _LONG_ENOUGH = 8, 512, 0.2  # of what is timed: tokens of a prompt, rows, seconds
_VOCABULARY = 512  # of the block that is timed
_KEYS_A_NEURON = 10  # as `recommend_layers` collects


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


def block_speed(
    config: PretrainedConfig,
    shape: Shape,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    clock: Callable[[], float] = perf_counter,
) -> Callable[[], cost.Speed]:
    """Measures, whenever it is called, how fast one block of that shape runs, which is made now with random weights.

    It runs a short prompt, a batch of such, and pieces of text, each twice; batches have at most 512 tokens, or as few
    as take a fifth of a second: some CPUs multiply half precision very slowly.
    """
    one = copy.deepcopy(config)
    one.num_hidden_layers, one.vocab_size = 1, _VOCABULARY
    one.bos_token_id = one.eos_token_id = 0
    one.pad_token_id = None
    with tempfile.TemporaryDirectory() as folder:
        save_made_up(Path(folder), one, dtype)
        model = load_model(folder, dtype=dtype, device=device)

    @torch.no_grad()
    def seconds(rows: int, length: int) -> float:
        tokens = torch.randint(1, _VOCABULARY, (rows, length), device=model.cfg.device)
        found = []
        for _ in range(2):
            start = clock()
            run(model, tokens).sum().item()  # which waits for a GPU
            found.append(max(1e-9, clock() - start))
        return sum(found) / len(found)

    def speed() -> cost.Speed:
        many = 2
        while many * _SHORT < _MOST_ROWS and seconds(many, _SHORT) < _LONG_ENOUGH / 2:
            many *= 2
        quick, slow = (seconds(rows, _SHORT) for rows in (1, many))
        each = max((slow - quick) / (many - 1), 0.5 * slow / many) / _SHORT  # noise cannot make a row cost nothing
        length = min(_LENGTH, model.cfg.n_ctx)
        pieces = many * _SHORT * 4 // length
        long = pieces * cost.block_operations(shape, length, length) / seconds(pieces, length) if pieces else None
        of_row = cost.block_operations(shape, _SHORT, _SHORT) / _SHORT
        return cost.Speed(of_row / each, max(0.0, quick / each - _SHORT), long)

    return speed


def forecast(
    shape: Shape,
    *,
    layer: int,
    prompt: cost.Prompt,
    samples: int,
    itemsize: int,
    speed: cost.Speed,
    tokens: int | None = None,
) -> pd.DataFrame:
    """A row for each piece of work: work, teraflops, seconds, gib. `tokens` are the covariance's; None: 10 d_mlp."""
    config, tokens = RomeConfig(), tokens or _KEYS_A_NEURON * shape.d_mlp
    contexts = cost.in_contexts(prompt, 1, config)
    rows: list[tuple[str, float | None, float, float]] = []  # work, operations, weights passed, bytes
    rows.append(("loading", None, 0.0, cost.loading_bytes(shape, itemsize)))
    for kind in KINDS:
        operations = cost.trace_operations(shape, prompt, kind=kind, samples=samples)
        held = cost.trace_bytes(shape, prompt, itemsize=itemsize, samples=samples)
        weights = cost.trace_weights(shape, prompt, kind=kind, samples=samples)
        rows.append((f"a trace ({kind}, {samples} samples)", operations, weights, held))
    operations = cost.covariance_operations(shape, [layer], tokens, length=_LENGTH)
    operations += 2 * cost.solving_operations(shape)  # of both halves, to compare them
    held = cost.covariance_bytes(shape, 1, itemsize=itemsize, batch=_BATCH)
    rows.append((f"a covariance ({tokens} tokens)", operations, 0.0, held))
    sampled, passed = cost.sampling_work(shape, config)
    operations = cost.search_operations(shape, contexts, layer, steps=config.steps) + sampled
    weights = cost.search_weights(shape, layer, steps=config.steps) + passed
    held = cost.search_bytes(shape, contexts, layer, itemsize=itemsize)
    rows.append(("an edit (rome)", operations + cost.solving_operations(shape), weights, held))
    return pd.DataFrame(
        [
            {
                "work": name,
                "teraflops": None if operations is None else operations / 1e12,
                "seconds": None if operations is None else _speed_of(name, speed).seconds(operations, weights),
                "gib": held / 2**30,
            }
            for name, operations, weights, held in rows
        ]
    )


def _speed_of(work: str, speed: cost.Speed) -> cost.Speed:
    """A covariance is collected from long pieces of text."""
    return cost.Speed(speed.long) if speed.long and work.startswith("a covariance") else speed


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
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
        config = configuration(options.model)
        shape = shape_of_config(config)
    except ValueError as error:
        arguments.error(str(error))
    layer = shape.n_layers // 3 if options.layer is None else options.layer
    if not 0 <= layer < shape.n_layers:
        arguments.error(f"--layer is {layer}, but {options.model} has layers 0 to {shape.n_layers - 1}.")
    dtype = getattr(torch, options.dtype)
    speed = block_speed(config, shape, dtype=dtype, device=options.device)()
    prompt = cost.Prompt(options.tokens, range(4))
    table = forecast(shape, layer=layer, prompt=prompt, samples=options.samples, itemsize=dtype.itemsize, speed=speed)
    print(
        f"{options.model}: {shape.parameters / 1e9:.2f}e9 numbers, {shape.parameters * dtype.itemsize / 2**30:.1f} GiB "
        f"in {options.dtype}. Its blocks run at {speed.operations / 1e9:.3g} GFLOP/s now, as if each batch had "
        f"{speed.rows:.0f} rows more; the layer is {layer}.\n"
    )
    print(table.to_string(index=False, na_rep="", float_format=lambda number: f"{number:.3g}"))


if __name__ == "__main__":
    main()
