"""Many records written at once: the scores of MEMIT, EMMET and AlphaEdit on CounterFact records, and before the edit.

All records are scored on the model that holds them all. What was done is kept and not done again: covariances in their
folder, the targets that the methods share and each method's scores beside `--out`.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pandas as pd
from transformer_lens import HookedTransformer

import rome_lens as rl
from analyses.files import add_record_arguments, chosen_records, parser, write_csv

METHODS = ("memit", "emmet", "alphaedit")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m")
    arguments.add_argument("--methods", choices=METHODS, nargs="+", default=METHODS)
    arguments.add_argument("--layers", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    arguments.add_argument(
        "--covariances", type=Path, default=Path("results/covariances"), help="layer4.safetensors..."
    )
    arguments.add_argument("--texts", type=Path, help="a text file, for the covariances that are not there yet")
    arguments.add_argument("--tokens", type=int, default=100_000, help="tokens of it to use")
    arguments.add_argument(
        "--covariance-weight", type=float, help="of MEMIT; 15,000 of GPT-J's d_mlp, scaled to the model's, if absent"
    )
    arguments.add_argument("--null-space-threshold", type=float, default=rl.AlphaEditConfig.null_space_threshold)
    arguments.add_argument("--ridge", type=float, default=rl.AlphaEditConfig.ridge, help="of AlphaEdit")
    arguments.add_argument("--out", type=Path, default=Path("results/batch_editing.csv"))
    add_record_arguments(arguments, count=100)
    options = arguments.parse_args()

    model = rl.load_model(options.model)
    records = chosen_records(options)
    requests = [record.request for record in records]
    covariances = kept_covariances(model, options)
    kept = options.out.with_suffix(".records.csv")
    frames = dict(list(pd.read_csv(kept).groupby("method", sort=False))) if kept.exists() else {}

    def score(name: str, edit: Callable[[], rl.Edit] | None = None) -> None:
        if name in frames and set(frames[name]["case_id"]) == {record.case_id for record in records}:
            return
        with nullcontext() if edit is None else edit().applied(model):
            frames[name] = rl.score_records(model, records, name=name)
        write_csv(pd.concat(frames.values()), kept)

    score("base")
    store = options.out.with_suffix(".targets.safetensors")
    targets = rl.memit_targets(model, requests, layer=max(options.layers), store=store)
    for method in options.methods:
        score(described(method, options), partial(computed, method, options, model, covariances, targets))
    summary = rl.summarize(pd.concat(frames.values()))
    write_csv(summary, options.out)
    print(summary[["method", "n", "S", "ES", "PS", "NS", "EM", "PM", "NM"]].round(3).to_string(index=False))


def kept_covariances(model: HookedTransformer, options: argparse.Namespace) -> dict[int, rl.KeyCovariance]:
    """Those in the folder, and those that are missing there, collected from the text."""
    paths = {layer: options.covariances / f"layer{layer}.safetensors" for layer in options.layers}
    missing = [layer for layer, path in paths.items() if not path.exists()]
    if missing:
        if options.texts is None:
            raise SystemExit(f"{options.covariances} has no covariances of the layers {missing}. Give --texts FILE.")
        texts = rl.texts_from_file(options.texts)
        made = rl.collect_covariance(model, missing, texts=texts, tokens=options.tokens)
        for layer in missing:
            made[layer].save(paths[layer])
    return {layer: rl.KeyCovariance.load(path) for layer, path in paths.items()}


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
    model: HookedTransformer,
    covariances: dict[int, rl.KeyCovariance],
    targets: rl.MemitTargets,
) -> rl.Edit:
    """The edit of the method, with the options' numbers."""
    requests, layers = targets.requests, options.layers
    if method == "memit":
        memit = rl.MemitConfig(layers=layers, covariance_weight=options.covariance_weight)
        return rl.memit(model, requests, covariances=covariances, targets=targets, config=memit)
    if method == "emmet":
        emmet = rl.EmmetConfig(layers=layers)
        return rl.emmet(model, requests, covariances=covariances, targets=targets, config=emmet)
    threshold, ridge = options.null_space_threshold, options.ridge
    alphaedit = rl.AlphaEditConfig(layers=layers, null_space_threshold=threshold, ridge=ridge)
    return rl.alphaedit(model, requests, covariances=covariances, targets=targets, config=alphaedit)


if __name__ == "__main__":
    main()
