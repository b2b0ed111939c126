"""What a model of a real size costs here, beside what `plan` says: loading, tracing, a covariance and an edit.

The model has the true shape and random weights, so that nothing is downloaded. It is saved in OUT/model and deleted at
the end. Each piece of work is kept in OUT/run and not done again. Memory is what comes on top of the loaded weights (of
loading: all of it), `of_weights` its share of them. `plain_cpu_seconds` is a plain loop over all cells of the trace,
extrapolated from some. Forecasts are of processor seconds, as others may use the machine: the speed of products is
measured in the same clock, before and after each piece of work.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import torch

import rome_lens as rl
from rome_lens.evaluate import cost
from rome_lens.models import Model
from rome_lens.models.loading.shape import Shape, shape_of_config
from rome_lens.storage import open_journal

from . import plan
from .common.made_up import save_made_up, words
from .common.manifest import write_manifest
from .common.measuring import measured
from .common.options import program, write_csv
from .plain.tracing import plain_trace

SUBJECT = 4  # tokens, as `plan` has it
WINDOW = 10
WORK = ("loading", "trace", "edit")
NOISE = rl.GaussianNoise(std=0.1)
GIB = 2**30


def weights_of(model: Model) -> int:
    """How many bytes the weights take."""
    return sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values())


def spent_on(work: Callable[[], Model]) -> tuple[Model, dict[str, float]]:
    """Does some work, and gives the model that it gives back, and its seconds and memory."""
    model, spent = measured(work)
    held = spent.peak_mb * 1e6
    shares = {"gib": held / GIB, "of_weights": held / weights_of(model)}
    return model, {"seconds": spent.seconds, "cpu_seconds": spent.cpu_seconds, **shares}


def on_top(model: Model, work: Callable[[], object]) -> dict[str, float]:
    """Seconds of some work with a model, and the memory that it takes."""

    def worked() -> Model:
        work()
        return model

    return spent_on(worked)[1]


def trace(model: Model, fact: rl.Fact, options: argparse.Namespace, *, kind: plan.Kind) -> dict[str, float]:
    """The library's grid, and some cells of the plain loop."""
    how: dict[str, Any] = {"kind": kind, "window": WINDOW, "samples": options.samples}
    grids = []
    found = on_top(model, lambda: grids.append(rl.causal_trace(model, fact, corruption=NOISE, **how).restored))
    places = np.random.RandomState(0).choice(grids[0].numel(), size=options.cells, replace=False)
    cells = [(int(place) // model.cfg.n_layers, int(place) % model.cfg.n_layers) for place in places]
    plain, spent = measured(lambda: plain_trace(model, fact, NOISE, cells=cells, **how))
    seconds = spent.cpu_seconds / len(cells) * plain.numel()
    kept = ~plain.isnan()
    difference = ((grids[0][kept] - plain[kept]).abs() / plain[kept]).max().item()
    ratio = seconds / found["cpu_seconds"]
    return {**found, "plain_cpu_seconds": seconds, "times_plain": ratio, "relative_difference": difference}


def covariance(model: Model, options: argparse.Namespace, layer: int) -> dict[str, float]:
    """One pass over random words; the result is kept for the edit."""
    text = " ".join(words(options.covariance_tokens + 1, model.cfg.d_vocab))
    made: dict[int, rl.KeyCovariance] = {}
    found = on_top(
        model, lambda: made.update(rl.collect_covariance(model, [layer], texts=text, tokens=options.covariance_tokens))
    )
    made[layer].save(options.out / "covariance.safetensors", overwrite=True)
    return found


def edit(model: Model, request: rl.EditRequest, options: argparse.Namespace) -> dict[str, float]:
    """One edit of ROME's, all steps."""
    known = rl.KeyCovariance.load(options.out / "covariance.safetensors").shrunk()
    config = rl.RomeConfig(early_stop_loss=0.0)
    return on_top(model, lambda: rl.rome(model, request, covariance=known, config=config, on_unhealthy="ignore"))


def measure(options: argparse.Namespace, shape: Shape, folder: Path, speed: Callable[[], cost.Speed]) -> pd.DataFrame:
    """A row for each piece of work, in `plan`'s order; the model is loaded once one needs it."""
    layer, dtype = shape.n_layers // 3, getattr(torch, options.dtype)
    said = words(options.tokens, shape.d_vocab, seed=1)
    subject, prompt = " ".join(said[:SUBJECT]), " ".join(["{}", *said[SUBJECT:]])
    fact, request = rl.Fact(prompt, subject), rl.EditRequest(prompt, subject, target="w7")

    def planned() -> pd.DataFrame:
        about = cost.Prompt(options.tokens, range(SUBJECT))
        given: dict[str, Any] = {"samples": options.samples, "tokens": options.covariance_tokens}
        return plan.forecast(shape, layer=layer, prompt=about, itemsize=dtype.itemsize, speed=speed(), **given)

    work: list[tuple[str, Callable[[Model], dict[str, float]] | None]] = [
        ("loading", None),
        *(("trace", partial(trace, fact=fact, options=options, kind=kind)) for kind in plan.KINDS),
        ("edit", partial(covariance, options=options, layer=layer)),
        ("edit", partial(edit, request=request, options=options)),
    ]
    identity = {name: value for name, value in vars(options).items() if name != "out"}
    with open_journal(options.out / "run", kind="run of real sizes", identity=identity, read=dict) as journal:
        rows = list(journal.rows)
        chosen = [(number, do) for number, (what, do) in enumerate(work) if what in options.work]
        if left := chosen[len(rows) :]:
            model, loading = spent_on(lambda: rl.load_model(folder, dtype=dtype, device="cpu"))
        for number, do in left:
            before = planned()
            found = loading if do is None else do(model)
            seconds = (before["seconds"][number] + planned()["seconds"][number]) / 2
            forecast = {"planned_cpu_seconds": seconds, "planned_gib": before["gib"][number]}
            rows.append({"work": before["work"][number], **found, **forecast})
            journal.append(rows[-1])
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> None:
    shown = argparse.ArgumentDefaultsHelpFormatter
    arguments = argparse.ArgumentParser(program(), description=__doc__, formatter_class=shown)
    arguments.add_argument("--model", default="gpt2-xl", help=f"{', '.join(plan.SHAPES)}; a folder; a config.json")
    arguments.add_argument("--dtype", choices=plan.DTYPES, default="float32")
    arguments.add_argument("--work", nargs="+", choices=WORK, default=list(WORK), help="edit: and the covariance")
    arguments.add_argument("--tokens", type=int, default=10, help="of the prompt, of which the first 4 are the subject")
    arguments.add_argument("--samples", type=int, default=10, help="corrupted runs of a trace")
    arguments.add_argument("--cells", type=int, default=6, help="cells that the plain loop computes")
    arguments.add_argument("--covariance-tokens", type=int, default=4096)
    arguments.add_argument("--out", type=Path, default=Path("results/real_sizes"), help="a folder")
    options = arguments.parse_args(argv)
    config = plan.configuration(options.model)
    folder = options.out / "model"
    if not folder.exists():
        made = options.out / "model.unfinished"
        shutil.rmtree(made, ignore_errors=True)
        save_made_up(made, config, getattr(torch, options.dtype))
        made.rename(folder)
    shape, dtype = shape_of_config(config), getattr(torch, options.dtype)
    speed = plan.block_speed(config, shape, dtype=dtype, clock=process_time)
    table = measure(options, shape, folder, speed)
    write_csv(table, options.out / "sizes.csv")
    write_manifest(options, None)
    shutil.rmtree(folder)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
