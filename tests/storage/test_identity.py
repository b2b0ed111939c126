"""What is made alike is the same; another setting is told, wherever it sits."""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rome_lens.errors import FormatError
from rome_lens.storage import check_same, plain


@dataclass(frozen=True)
class Settings:
    layer: int = 4
    contexts: tuple[str, ...] = ("{}",)


class Object:
    def __init__(self, value):
        self.value = value

    def method(self, x):
        return x


def function(x, *, config=None):
    return config


GLOBAL = Settings(7)
ALIKE = {
    "a config": lambda layer: Settings(layer),
    "a list": lambda layer: [Settings(1), layer],
    "a range": lambda layer: range(layer),
    "a set": lambda layer: {"a", layer},
    "a mapping": lambda layer: {"a": {"b": layer}},
    "a tensor": lambda layer: torch.full((2, 3), float(layer)).bfloat16(),
    "a number as a tensor": lambda layer: torch.tensor(layer),
    "an array": lambda layer: np.full((2, 3), layer),
    "a NumPy number": lambda layer: np.float32(layer),
    "a path": lambda layer: Path(str(layer)),
    "an object": lambda layer: Object(layer),
    "a method of an object": lambda layer: Object(layer).method,
    "a module": lambda layer: _module(layer),
    "a partial": lambda layer: partial(function, config=Settings(layer)),
    "a partial of a partial": lambda layer: partial(partial(function, layer), config=Settings()),
    "a function with a config around it": lambda layer: _taking(Settings(layer)),
    "an argument": lambda layer: partial(function, layer),
}


def _module(layer):
    module = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(module.weight, layer)
    torch.nn.init.zeros_(module.bias)
    return module


def _taking(config):
    return lambda x: function(x, config=config)


@pytest.mark.parametrize("make", ALIKE.values(), ids=ALIKE)
def test_what_is_made_alike_is_the_same_and_what_is_not_is_another(make):
    first, second, other = (json.dumps(plain(make(layer))) for layer in (3, 3, 4))
    assert first == second
    assert first != other


def test_what_work_has_found_meanwhile_is_not_what_it_depends_on():
    @dataclass
    class Cached:
        layer: int
        last: dict[str, int] = field(default_factory=dict, compare=False)

    used = Cached(4)
    used.last["a"] = 1
    assert plain([used]) == plain([Cached(4)]) != plain([Cached(5)])


def test_a_function_is_known_by_its_place_and_its_configurations():
    assert plain(function) == f"{__name__}.function"
    assert plain(lambda x: (x, GLOBAL)) == {
        "function": f"{__name__}.test_a_function_is_known_by_its_place_and_its_configurations.<locals>.<lambda>",
        "GLOBAL": {"class": f"{__name__}.Settings", "layer": 7, "contexts": ["{}"]},
    }
    assert plain(max) == "builtins.max"


def test_what_holds_itself_has_an_end():
    round_about = Object(None)
    round_about.value = [round_about]
    assert plain(round_about) == {"class": f"{__name__}.Object", "value": ["itself"]}


def test_what_differs_is_told_by_its_innermost_name_and_shortened():
    begun = plain({"config": Settings(4, ("x" * 500,)), "seed": 1})
    with pytest.raises(FormatError) as told:
        check_same("there", begun, plain({"config": Settings(5, ("y" * 500,)), "seed": 1}))
    assert "there was begun with {'config.layer': 4, 'config.contexts': " in str(told.value)
    assert "but {'config.layer': 5, " in str(told.value)
    assert "seed" not in str(told.value)
    assert len(str(told.value)) < 600
    check_same("there", begun, plain({"config": Settings(4, ("x" * 500,))}))
