"""The sizes in a folder's config.json against the folder's own weights, before a model of such sizes is built."""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from rome_lens.errors import FormatError
from rome_lens.reading import check_size, existing_file, foreign

_MOST_CONFIG_BYTES = 1 << 24
_LARGEST_NUMBER = 1 << 24  # of a setting that no tensor bounds, such as the length of the context
_COUNTS = ("layer", "block", "expert")  # each of which has tensors of its own
_MOST_EXPERTS = 1024  # where one tensor holds those of a layer


def check_sizes(folder: Path) -> None:
    """Checks that no number in config.json is larger than the folder's safetensors files could have tensors for.

    A wrong number of layers, say 10^7, is built for minutes before the weights are seen not to fit.

    Raises:
        FileNotFoundError: there is no config.json.
        FormatError: the config is no JSON object, a number in it is too large, or a file of weights is damaged.
    """
    path = existing_file(folder / "config.json", "the configuration of a model in Hugging Face's format")
    with foreign(path, "is damaged or is not JSON"):
        check_size(path, _MOST_CONFIG_BYTES)
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
                f"{name} in {path} is {str(number)[:20]}, but with the {len(shapes)} tensors that are there it is at most "
                f"{bound}. Is the file damaged? Save the model again."
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
