"""The covariances that edits need: given, shipped with the package, or collected once and kept."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import rome_lens as rl
from rome_lens.edit.rome import SHIPPED_COVARIANCES, shipped_covariance
from rome_lens.models import Model

TEXTS = ("Salesforce/wikitext", "wikitext-103-raw-v1")  # on the Hugging Face hub


def add_covariance_arguments(arguments: argparse.ArgumentParser) -> None:
    """Where ROME's covariance comes from."""
    arguments.add_argument(
        "--covariance", type=Path, help="a saved KeyCovariance for ROME; the shipped one, or one of the suggested layer"
    )
    add_collecting_arguments(arguments)


def add_collecting_arguments(arguments: argparse.ArgumentParser) -> None:
    """Where covariances are kept, and what the missing ones are collected from."""
    arguments.add_argument(
        "--covariances", type=Path, default=Path("results/covariances"), help="a folder: layer4.safetensors..."
    )
    arguments.add_argument(
        "--texts", type=Path, help="a text file, for the covariances that are not there yet; WikiText-103 if absent"
    )
    arguments.add_argument("--tokens", type=int, default=100_000, help="tokens of it to use")


def rome_covariance(model: Model, options: argparse.Namespace) -> rl.KeyCovariance:
    """The one that is given; else the one that ships for the model; else that of its suggested layer, kept."""
    if options.covariance:
        return rl.KeyCovariance.load(options.covariance)
    if str(model.cfg.model_name) in SHIPPED_COVARIANCES:
        return shipped_covariance(model)
    layer = rl.suggested_layer(model)
    return kept_covariances(model, [layer], options)[layer]


def kept_covariances(model: Model, layers: Iterable[int], options: argparse.Namespace) -> dict[int, rl.KeyCovariance]:
    """Those in the folder, and those that it lacks, collected from the text in one pass."""
    paths = {layer: options.covariances / f"layer{layer}.safetensors" for layer in layers}
    if missing := [layer for layer, path in paths.items() if not path.exists()]:
        texts = rl.texts_from_file(options.texts) if options.texts else rl.texts_from_dataset(*TEXTS)
        made = rl.collect_covariance(model, missing, texts=texts, tokens=options.tokens)
        for layer in missing:
            made[layer].save(paths[layer])
    return {layer: rl.KeyCovariance.load(path) for layer, path in paths.items()}
