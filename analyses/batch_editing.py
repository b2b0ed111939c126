"""Many records written at once: the scores of MEMIT, EMMET and AlphaEdit on CounterFact records, and before the edit.

All records are scored on the model that holds them all. What was done is kept and not done again: covariances in their
folder, the targets that the methods share and each record's scores (records.csv) in OUT.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import pandas as pd

import rome_lens as rl
from rome_lens.models import Model

from .common.manifest import write_manifest
from .common.methods import BATCH, BATCH_LAYERS
from .common.options import (
    add_collecting_arguments,
    add_record_arguments,
    chosen_records,
    kept_covariances,
    parsed,
    parser,
    write_csv,
)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/batch_editing")
    arguments.add_argument("--methods", choices=BATCH, nargs="+", default=list(BATCH))
    arguments.add_argument("--layers", type=int, nargs="+", default=BATCH_LAYERS)
    add_collecting_arguments(arguments)
    arguments.add_argument(
        "--covariance-weight", type=float, help="of MEMIT; 15,000 of GPT-J's d_mlp, scaled to the model's, if absent"
    )
    arguments.add_argument("--null-space-threshold", type=float, default=rl.edit.AlphaEditConfig.null_space_threshold)
    arguments.add_argument("--ridge", type=float, default=rl.edit.AlphaEditConfig.ridge, help="of AlphaEdit")
    add_record_arguments(arguments, count=100)
    options = parsed(arguments, argv, full={"count": 10_000})

    model = rl.load_model(options.model)
    records = chosen_records(options)
    requests = [record.request for record in records]
    covariances = kept_covariances(model, options.layers, options)
    kept = options.out / "records.csv"
    frames = dict(list(pd.read_csv(kept).groupby("method", sort=False))) if kept.exists() else {}

    def score(name: str, edit: Callable[[], rl.Edit] | None = None) -> None:
        if name in frames and set(frames[name]["case_id"]) == {record.case_id for record in records}:
            return
        with nullcontext() if edit is None else edit().applied(model):
            frames[name] = rl.score_edits(model, records, {}).assign(method=name)
        write_csv(pd.concat(frames.values()), kept)

    score("base")
    targets = rl.edit.memit_targets(model, requests, layer=max(options.layers), out=options.out / "targets")
    for method in options.methods:
        score(described(method, options), partial(computed, method, options, model, covariances, targets))
    summary = rl.summarize(pd.concat(frames.values()))
    write_csv(summary, options.out / "table.csv")
    write_manifest(options, model)
    print(summary[["method", "n", "S", "ES", "PS", "NS", "EM", "PM", "NM"]].round(3).to_string(index=False))


def described(method: str, options: argparse.Namespace) -> str:
    """The method with its numbers: what its rows are known by."""
    numbers = {
        "memit": f", weight {options.covariance_weight:g}" if options.covariance_weight else "",
        "emmet": "",
        "alphaedit": f", threshold {options.null_space_threshold:g}, ridge {options.ridge:g}",
    }
    return f"{method}, layers {' '.join(map(str, options.layers))}{numbers[method]}"


def computed(
    method: str,
    options: argparse.Namespace,
    model: Model,
    covariances: dict[int, rl.KeyCovariance],
    targets: rl.edit.MemitTargets,
) -> rl.Edit:
    """The edit of the method, with the options' numbers."""
    numbers = {
        "memit": {"covariance_weight": options.covariance_weight},
        "emmet": {},
        "alphaedit": {"null_space_threshold": options.null_space_threshold, "ridge": options.ridge},
    }
    edit, config = BATCH[method]
    config = config(layers=options.layers, **numbers[method])
    return edit(model, targets.requests, covariances=covariances, targets=targets, config=config)


if __name__ == "__main__":
    main()
