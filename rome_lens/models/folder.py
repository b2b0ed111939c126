"""A model's folder before anything is built of it: plain files of sensible length, and sizes that the weights allow."""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rome_lens.errors import FormatError
from rome_lens.storage import MOST_JSON_BYTES, check_size, existing_file, foreign

_TEXTS = (".json", ".jinja", ".model", ".txt")
_LARGEST_NUMBER = 1 << 24  # of a setting that no tensor bounds, such as the length of the context
_COUNTS = ("layer", "block", "expert")  # each of which has tensors of its own
_MOST_EXPERTS = 1024  # where one tensor holds those of a layer


def check_folder(folder: Path) -> None:
    """Checks that all that is read is a plain file, and that the weights allow the numbers in config.json.

    A pipe is waited for without end; a wrong number of layers, say 10^7, is built for minutes before the weights are
    seen not to fit.

    Raises:
        FileNotFoundError: there is no config.json, or a file is a link that leads nowhere, a folder or a pipe.
        FormatError: the config is no JSON object, a number in it is too large, or a file of weights is damaged.
    """
    path = existing_file(folder / "config.json", "the configuration of a model in Hugging Face's format")
    for file in folder.iterdir():
        if file.suffix in _TEXTS:
            check_size(existing_file(file, "a file of a model"), MOST_JSON_BYTES)
    with foreign(path, "is damaged or is not JSON"):
        config = json.loads(path.read_text(encoding="utf-8"))
        numbers = list(_numbers(config))
    if not isinstance(config, dict):
        raise FormatError(f"{path} holds a JSON {type(config).__name__}, expected an object. Save the model again.")
    shapes = [shape for file in sorted(folder.glob("*.safetensors")) for shape in _shapes(file)]
    most = max(_LARGEST_NUMBER, sum(map(prod, shapes)))
    for name, number in numbers:
        bound = max(len(shapes), _MOST_EXPERTS) if any(count in name for count in _COUNTS) else most
        if number > bound:
            raise FormatError(
                f"{name} in {path} is {str(number)[:20]}, but the {len(shapes)} tensors that are there allow {bound} "
                "at most. Save the model again."
            )


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
    existing_file(file, "a safetensors file")
    with foreign(file, "is damaged or is not a safetensors file"), safe_open(file, framework="pt") as opened:
        return [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118 (not a dict)
