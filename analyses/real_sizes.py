"""What a model of a real size costs here, beside what `plan` says: loading, tracing, a covariance and an edit.

The model has the true shape and random weights, so that nothing is downloaded. It is saved in OUT/model and deleted at
the end. Each piece of work is kept in OUT/run and not done again. Memory is what comes on top of the loaded weights (of
loading: all of it), `of_weights` its share of them; on a GPU, it is the GPU's. The plain seconds are a loop over all
cells of the trace, extrapolated from some; of edits, a whole pass over all prompts in every step of the search, for one
request and times their number. On a CPU, forecasts are of processor seconds, as others may use the machine, on a GPU by
the clock: the speed of products is measured in the same, before and after each piece of work.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pandas as pd
import torch

import rome_lens as rl
from rome_lens.edit.search.settings import SearchConfig
from rome_lens.edit.search.suffix import Place
from rome_lens.models import Model
from rome_lens.storage import open_journal

from . import plan
from .common import cost
from .common.cost import Shape, shape_of_config
from .common.made_up import save_made_up, words
from .common.manifest import write_manifest
from .common.measuring import measured
from .common.options import parser, write_csv
from .plain.editing import plain_value
from .plain.tracing import plain_trace

SUBJECT = 4  # tokens, as `plan` has it
WINDOW = 10
WORK = ("loading", "trace", "edit", "memit")
NOISE = rl.GaussianNoise(std=0.1)
GIB = 2**30


def weights_of(model: Model) -> int:
    """How many bytes the weights take."""
    return sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values())


def spent_on(work: Callable[[], Model], device: str | torch.device) -> tuple[Model, dict[str, float]]:
    """Does some work, and gives the model that it gives back, and its seconds and memory."""
    model, spent = measured(work, device)
    held = spent.peak_mb * 1e6
    shares = {"gib": held / GIB, "of_weights": held / weights_of(model)}
    return model, {"seconds": spent.seconds, "cpu_seconds": spent.cpu_seconds, **shares}


def on_top(model: Model, work: Callable[[], object]) -> dict[str, float]:
    """Seconds of some work with a model, and the memory that it takes."""

    def worked() -> Model:
        work()
        return model

    return spent_on(worked, model.cfg.device)[1]


def clock_of(device: str) -> str:
    """The seconds that tell most: a GPU is this work's alone, a processor may not be."""
    return "cpu_seconds" if torch.device(device).type == "cpu" else "seconds"


def processor_of(device: str) -> str:
    """The name of a GPU; "cpu" of a CPU."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name()) if name else device


def beside_plain(found: dict[str, float], seconds: float, device: str) -> dict[str, float]:
    """The same with a plain way's seconds, and how many times ours those are."""
    clock = clock_of(device)
    return {**found, f"plain_{clock}": seconds, "times_plain": seconds / found[clock]}


def trace(model: Model, fact: rl.Fact, options: argparse.Namespace, *, kind: plan.Kind) -> dict[str, float]:
    """The library's grid, and some cells of the plain loop."""
    how: dict[str, Any] = {"kind": kind, "window": WINDOW, "samples": options.samples}
    grids = []
    found = on_top(model, lambda: grids.append(rl.causal_trace(model, fact, corruption=NOISE, **how).restored))
    places = np.random.RandomState(0).choice(grids[0].numel(), size=options.cells, replace=False)
    cells = [(int(place) // model.cfg.n_layers, int(place) % model.cfg.n_layers) for place in places]
    plain, spent = measured(lambda: plain_trace(model, fact, NOISE, cells=cells, **how).cpu(), options.device)
    kept = ~plain.isnan()
    difference = ((grids[0][kept] - plain[kept]).abs() / plain[kept]).max().item()
    seconds = getattr(spent, clock_of(options.device)) / len(cells) * plain.numel()
    return beside_plain(found, seconds, options.device) | {"relative_difference": difference}


def covariances(model: Model, options: argparse.Namespace, layers: Sequence[int]) -> dict[str, float]:
    """One pass over random words; the results are kept for the edits."""
    text = " ".join(words(options.covariance_tokens + 1, model.cfg.d_vocab))
    made: dict[int, rl.KeyCovariance] = {}
    found = on_top(
        model, lambda: made.update(rl.collect_covariance(model, layers, texts=text, tokens=options.covariance_tokens))
    )
    for layer in layers:
        made[layer].save(kept_covariance(options, layer), overwrite=True)
    return found


def kept_covariance(options: argparse.Namespace, layer: int) -> Path:
    """The file of a layer's covariance."""
    return Path(options.out / f"covariance{layer}.safetensors")


def edit(model: Model, request: rl.EditRequest, options: argparse.Namespace, layer: int) -> dict[str, float]:
    """One edit of ROME's, all steps."""
    known = rl.KeyCovariance.load(kept_covariance(options, layer)).shrunk()
    config = rl.RomeConfig(early_stop_loss=0.0)
    config = replace(config, contexts=config.contexts_for(model)) if options.plain_edits else config
    found = on_top(model, lambda: rl.rome(model, request, covariance=known, config=config, on_unhealthy="ignore"))
    return plain_search(model, request, options, layer, config, found) if options.plain_edits else found


def memit(
    model: Model, requests: Sequence[rl.EditRequest], options: argparse.Namespace, layers: Sequence[int]
) -> dict[str, float]:
    """One batch of MEMIT's, all steps."""
    known = {layer: rl.KeyCovariance.load(kept_covariance(options, layer)).shrunk() for layer in layers}
    config = rl.edit.MemitConfig(layers=list(layers), early_stop_loss=0.0)
    config = replace(config, contexts=config.contexts_for(model)) if options.plain_edits else config
    found = on_top(model, lambda: rl.memit(model, requests, covariances=known, config=config, on_unhealthy="ignore"))
    if not options.plain_edits:
        return found
    return plain_search(model, requests[0], options, layers[-1], config, found, at="resid", times=len(requests))


def plain_search(
    model: Model,
    request: rl.EditRequest,
    options: argparse.Namespace,
    layer: int,
    config: SearchConfig,
    found: dict[str, float],
    *,
    at: Place = "mlp",
    times: int = 1,
) -> dict[str, float]:
    """What was found, beside the plain search for v* of so many requests like this one."""
    search = partial(plain_value, model, layer, request, config.contexts_for(model), config, at=at)
    with torch.device(options.device):
        _, spent = measured(search, options.device)
    return beside_plain(found, times * getattr(spent, clock_of(options.device)), options.device)


def measure(options: argparse.Namespace, shape: Shape, folder: Path, speed: Callable[[], cost.Speed]) -> pd.DataFrame:
    """A row for each piece of work, in `plan`'s order; the model is loaded once one needs it."""
    layer, dtype = shape.n_layers // 3, getattr(torch, options.dtype)
    several = range(max(0, layer - 2), min(layer + 3, shape.n_layers))
    said = words(options.tokens, shape.d_vocab, seed=1)
    subject, prompt = " ".join(said[:SUBJECT]), " ".join(["{}", *said[SUBJECT:]])
    fact, request = rl.Fact(prompt, subject), rl.EditRequest(prompt, subject, target="w7")
    others = [" ".join(words(SUBJECT, shape.d_vocab, seed=seed)) for seed in range(2, 2 + options.requests)]
    requests = [rl.EditRequest(prompt, other, target="w7") for other in others]

    def planned() -> pd.DataFrame:
        about = cost.Prompt(options.tokens, range(SUBJECT))
        given: dict[str, Any] = {"samples": options.samples, "tokens": options.covariance_tokens}
        return plan.forecast(shape, layer=layer, prompt=about, itemsize=dtype.itemsize, speed=speed(), **given)

    work: list[tuple[str, str | None, Callable[[Model], dict[str, float]] | None]] = [
        ("loading", None, None),
        *(("trace", None, partial(trace, fact=fact, options=options, kind=kind)) for kind in plan.KINDS),
        ("edit", None, partial(covariances, options=options, layers=[layer])),
        ("edit", None, partial(edit, request=request, options=options, layer=layer)),
        ("memit", f"{len(several)} covariances at once", partial(covariances, options=options, layers=several)),
        ("memit", f"{len(requests)} edits (memit)", partial(memit, requests=requests, options=options, layers=several)),
    ]
    identity = {name: value for name, value in vars(options).items() if name != "out"}
    with open_journal(options.out / "run", kind="run of real sizes", identity=identity, read=dict) as journal:
        rows = list(journal.rows)
        chosen = [(number, name, do) for number, (what, name, do) in enumerate(work) if what in options.work]
        if left := chosen[len(rows) :]:
            model, loading = spent_on(
                lambda: rl.load_model(folder, dtype=dtype, device=options.device), device=options.device
            )
        for number, name, do in left:
            before = planned()
            found = loading if do is None else do(model)
            if name is None:
                name = str(before["work"][number])
                seconds = (before["seconds"][number] + planned()["seconds"][number]) / 2
                found |= {f"planned_{clock_of(options.device)}": seconds, "planned_gib": before["gib"][number]}
            rows.append({"work": name, **found})
            journal.append(rows[-1])
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="gpt2-xl", help=f"{', '.join(plan.SHAPES)}; a folder; a config.json")
    arguments.add_argument("--dtype", choices=plan.DTYPES, default="float32")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument(
        "--work", nargs="+", choices=WORK, default=list(WORK[:3]), help="edit, memit: and their covariances"
    )
    arguments.add_argument("--tokens", type=int, default=10, help="of the prompt, of which the first 4 are the subject")
    arguments.add_argument("--samples", type=int, default=10, help="corrupted runs of a trace")
    arguments.add_argument("--cells", type=int, default=6, help="cells that the plain loop computes")
    arguments.add_argument("--plain-edits", action="store_true", help="time plain searches for v* too")
    arguments.add_argument("--requests", type=int, default=100, help="of memit")
    arguments.add_argument("--covariance-tokens", type=int, default=4096)
    arguments.add_argument("--out", type=Path, default=Path("results/real_sizes"), help="a folder")
    options = arguments.parse_args(argv)
    config = plan.configuration(options.model)
    folder = options.out / "model"
    if not folder.exists():
        made = options.out / "model.unfinished"
        shutil.rmtree(made, ignore_errors=True)
        with torch.device(options.device):
            save_made_up(made, config, getattr(torch, options.dtype))
        made.rename(folder)
    shape, dtype = shape_of_config(config), getattr(torch, options.dtype)
    clock = process_time if clock_of(options.device) == "cpu_seconds" else perf_counter
    speed = plan.block_speed(config, shape, dtype=dtype, device=options.device, clock=clock)
    table = measure(options, shape, folder, speed)
    write_csv(table, options.out / "sizes.csv")
    write_manifest(options, None, processor=processor_of(options.device))
    shutil.rmtree(folder)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
