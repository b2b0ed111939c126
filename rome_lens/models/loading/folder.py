"""Checks of a model's folder before a model is built: plain files, none too long, and sizes that fit the weights."""

import json
import re
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rome_lens.errors import FormatError
from rome_lens.storage import MOST_JSON_BYTES, check_size, existing_file, foreign

NOT_A_MODEL = (
    "could not be read as a causal language model with its tokenizer",
    "Save model and tokenizer there again with save_pretrained.",
)
"""The problem with a folder and the advice, for `foreign`."""
_TEXTS = (".json", ".jinja", ".model", ".txt")
_LARGEST_NUMBER = 1 << 24  # for a setting that no tensor bounds, such as the length of the context
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
_LARGEST_TOKEN = 1 << 21  # tokenizers names all ids up to the largest one that have no token, one by one
_COUNT = re.compile(r"(n|num)_(\w+_)?(layer|expert)s?")  # numbers of things that have tensors of their own
_MOST_EXPERTS = 1024  # where one tensor holds all experts of a layer


def check_folder(folder: Path) -> None:
    """Checks that whatever is read is a plain file, and that the numbers in config.json fit the weights.

    Reading a pipe would never end; and a model with a wrong number of layers, say 10^7, would be built for minutes
    before its weights are seen not to fit.

    Raises:
        FileNotFoundError: there is no config.json, or a file is a broken link, a folder or a pipe.
        FormatError: config.json, a vocabulary or a file of weights is damaged, a number in it is too large, or a file
            too long.
    """
    path = existing_file(folder / "config.json", "the configuration of a model in Hugging Face's format")
    for file in folder.iterdir():
        if file.suffix in _TEXTS:
            check_size(existing_file(file, "a file of a model"), MOST_JSON_BYTES)
    with foreign(folder, *NOT_A_MODEL):
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"config.json holds a JSON {type(config).__name__}, expected an object")
        numbers = list(_numbers(config))
        shapes = [shape for file in sorted(folder.glob("*.safetensors")) for shape in _shapes(file)]
        for file in filter(Path.is_file, map(folder.joinpath, _VOCABULARIES)):
            largest = max((number for _, number in _numbers(json.loads(file.read_text(encoding="utf-8")))), default=0)
            if largest > _LARGEST_TOKEN:
                raise ValueError(f"{file.name} has the number {str(largest)[:20]}, more than any vocabulary holds")
    most = max(_LARGEST_NUMBER, sum(map(prod, shapes)))
    for name, number in numbers:
        bound = max(len(shapes), _MOST_EXPERTS) if _COUNT.fullmatch(name) else most
        if number > bound:
            raise FormatError(
                f"{name} in {path} is {str(number)[:20]}, but the {len(shapes)} tensors that are there allow {bound} "
                "at most. Save the model again."
            )


def count_numbers(files: Iterable[Path]) -> int:
    """How many numbers the tensors of safetensors files hold."""
    return sum(prod(shape) for file in files for shape in _shapes(file))


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in a JSON value, with the name of its field."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value


def _shapes(file: Path) -> list[list[int]]:
    with safe_open(existing_file(file, "a safetensors file"), framework="pt") as opened:
        return [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118 (not a dict)
