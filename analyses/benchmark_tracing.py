"""Causal tracing: the library's grid against a plain loop with one hooked pass for each cell, in one run.

Both trace the same prompt on the same laid-out model with the same noise. The floor is the time of the operations that
no method can leave out (blocks after each restored state, positions from it on), at the measured speed of matrix
products. Further tables: how cost grows with prompt length, layers and samples.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import rome_lens as rl
from rome_lens.locate.grid import restored_layers
from rome_lens.locate.prompt import prepare_prompt
from rome_lens.models import Kind, Model

from .common.manifest import write_manifest
from .common.measuring import matrix_product_speed, measured, operations_per_token
from .common.options import parser, write_csv
from .plain.tracing import plain_trace

FACT = rl.Fact("{} is located in the city of", "The Eiffel Tower")
KINDS: tuple[Kind, ...] = ("resid", "mlp", "attn")
WINDOW = 10


def tiny_model(like: Model) -> Model:
    """A random GPT-2-like model of 4 layers with another model's tokenizer."""
    torch.manual_seed(0)
    sizes = {"n_layer": 4, "n_embd": 32, "n_head": 4, "n_positions": 128, "vocab_size": like.cfg.d_vocab}
    config = GPT2Config(**sizes, initializer_range=0.2, name_or_path="tiny")
    return rl.load_model(GPT2LMHeadModel(config), tokenizer=like.tokenizer, device="cpu")


def necessary_operations(model: Model, length: int, subject: range, samples: int, kind: Kind) -> float:
    """Of a whole grid: for each cell the blocks from its first restored layer on, for the positions from its own on."""
    block, unembedding = operations_per_token(model)
    n_layers = model.cfg.n_layers
    blocks = 0
    for layer in range(n_layers):
        window = restored_layers(kind, layer, WINDOW, n_layers)
        blocks += n_layers - (window.stop if kind == "resid" else window.start)
    positions = sum(length - position for position in range(subject.start, length))
    cells = len(range(subject.start, length)) * n_layers
    both_runs = (samples + 1) * (length * n_layers * block + unembedding)
    return samples * (positions * blocks * block + cells * unembedding) + both_runs


def compare(model: Model, kind: Kind, samples: int, speed: float) -> dict[str, object]:
    """The library's grid and the plain loop's on the same fact."""
    prompt = prepare_prompt(model, FACT)
    noise = rl.GaussianNoise(std=0.35)
    trace, ours = measured(
        lambda: rl.causal_trace(model, FACT, kind=kind, window=WINDOW, samples=samples, corruption=noise)
    )
    grid, plain = measured(lambda: plain_trace(model, FACT, noise, kind=kind, window=WINDOW, samples=samples))
    floor = necessary_operations(model, prompt.length, prompt.subject, samples, kind) / speed
    return {
        "model": model.cfg.model_name,
        "kind": kind,
        "tokens": prompt.length,
        "samples": samples,
        "ours_seconds": ours.seconds,
        "plain_seconds": plain.seconds,
        "ratio": plain.seconds / ours.seconds,
        "largest_difference": (trace.restored - grid).abs().max().item(),
        "floor_seconds": floor,
        "times_the_floor": ours.seconds / floor,
        "ours_peak_mb": ours.peak_mb,
        "plain_peak_mb": plain.peak_mb,
    }


def growth(model: Model) -> pd.DataFrame:
    """Seconds of a residual grid, one thing changed at a time from 10 tokens, all layers, 1 sample."""
    sentence = "The Eiffel Tower" + " is located in the city of love and of light" * 6
    ids = model.tokenizer(sentence, add_special_tokens=False)["input_ids"]
    n_layers = model.cfg.n_layers
    plans = [("tokens", length, length, n_layers, 1) for length in (5, 10, 20, 40, 60)]
    plans += [("layers", layers, 10, layers, 1) for layers in sorted({max(1, n_layers // each) for each in (4, 2, 1)})]
    plans += [("samples", samples, 10, n_layers, samples) for samples in (1, 2, 5, 10)]
    rows = []
    for what, value, length, layers, samples in plans:
        fact = rl.Fact.from_text(model.tokenizer.decode(ids[:length]), "The Eiffel Tower")
        _, spent = measured(
            lambda fact=fact, layers=layers, samples=samples: rl.causal_trace(  # type: ignore[misc]
                model, fact, samples=samples, layers=range(layers), progress=False
            )
        )
        rows.append((what, value, spent.seconds, spent.peak_mb))
    return pd.DataFrame(rows, columns=["changed", "value", "seconds", "peak_mb"])


def attribution(model: Model) -> pd.DataFrame:
    """Exact grids against the gradient approximation: how many times cheaper, for each kind."""
    rows = []
    for kind in KINDS:
        _, exact = measured(lambda kind=kind: rl.causal_trace(model, FACT, kind=kind))  # type: ignore[misc]
        seconds = [
            measured(lambda kind=kind: rl.causal_trace(model, FACT, kind=kind, method="attribution"))[1].seconds  # type: ignore[misc]
            for _ in range(4)
        ]
        rows.append((kind, exact.seconds, min(seconds[1:]), exact.seconds / min(seconds[1:])))
    return pd.DataFrame(rows, columns=["kind", "exact_seconds", "attribution_seconds", "ratio"])


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/benchmark_tracing")
    arguments.add_argument("--samples", type=int, default=10)
    options = arguments.parse_args(argv)

    model = rl.load_model(options.model)
    speed = matrix_product_speed()
    print(f"matrix products: {speed / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} threads")
    models = (tiny_model(model), model)
    tables = {
        "grid": lambda: pd.DataFrame([compare(m, kind, options.samples, speed) for m in models for kind in KINDS]),
        "growth": lambda: growth(model),
        "attribution": lambda: attribution(model),
    }
    for name, made in tables.items():
        table = made()
        write_csv(table, options.out / f"{name}.csv")
        print(table.round(8).to_string(index=False), end="\n\n", flush=True)
    write_manifest(options, model)


if __name__ == "__main__":
    main()
