"""Calls everything public in a world that its caller has set up otherwise; `test_public_api.py` runs this.

Like `public_cases.py`, whose calls these are, it runs without the type checker of the other tests, which draws from
Python's `random`.
"""

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import rome_lens as rl
from rome_lens.models.kinds import HAS_HOOKED
from tests.public import PUBLIC
from tests.public_cases import CASES, ELSEWHERE, FACT, NAMES, World
from tests.tiny import save_model
from tests.torture import FULL

pytestmark = pytest.mark.filterwarnings("ignore::rome_lens.errors.EditWarning")  # what others use is a guess here


class BridgeWorld(World):
    """Hugging Face's GPT-2 has dropout."""

    @cached_property
    def model(self) -> Any:
        folder = save_model(self.folder / "gpt2", "gpt2")
        model = TransformerBridge.boot_transformers(
            str(folder),
            hf_model=AutoModelForCausalLM.from_pretrained(folder),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            device="cpu",
        )
        model.cfg.default_prepend_bos = False
        return model


WORLDS = {"bridge": BridgeWorld, "loaded": World} if HAS_HOOKED else {"bridge": BridgeWorld}
TRIED = [
    (name, world)
    for name in [*sorted(set(NAMES) - set(ELSEWHERE)), "carried"]
    for world in WORLDS
    if world == list(WORLDS)[-1] or name == "carried" or "model" in inspect.signature(PUBLIC[name]).parameters
]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Most modules train, and one does not: each is to be found as it was."""
    modules = [*dict.fromkeys([*model.modules(), *getattr(model, "original_model", model).modules()])]
    before = [module.training for module in modules]
    model.train()
    modules[-1].training = False
    wanted = [module.training for module in modules]
    assert sum(wanted) > 10
    try:
        yield
        assert [module.training for module in modules] == wanted
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.training = mode


SETTINGS: dict[str, Callable[[nn.Module], AbstractContextManager]] = {
    "inference_mode": lambda model: torch.inference_mode(),
    "no_grad": lambda model: torch.no_grad(),
    "float64": lambda model: default_dtype(torch.float64),
    "bfloat16": lambda model: default_dtype(torch.bfloat16),
    "meta": lambda model: torch.device("meta"),
    "autocast": lambda model: torch.autocast("cpu", torch.bfloat16),
    "train": training,
}
TOGETHER = ["inference_mode", "float64", "meta", "autocast", "train"]
SETS = [TOGETHER, *([[name] for name in SETTINGS] if FULL else [])]


@pytest.fixture(scope="session", params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return WORLDS[request.param](tmp_path_factory.mktemp("world"))


def states() -> list[Any]:
    """Of the random generators that belong to everybody."""
    numpy_state = [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]
    return [random.getstate(), numpy_state, torch.random.get_rng_state().tolist()]


def numbers(value: Any) -> Any:
    """What a result says, as plain data that are compared with ==."""
    if isinstance(value, torch.Tensor):
        assert not value.is_inference()
        return str(value.dtype), repr(value.tolist())
    if isinstance(value, nn.Module):
        return numbers(dict(value.state_dict()))
    if isinstance(value, pd.DataFrame):
        return value.to_json()
    if isinstance(value, go.Figure):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: numbers(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [numbers(each) for each in value]
    return repr(value) if isinstance(value, str | int | float | Path | None) else type(value)


def carried(world: World) -> list[Any]:
    """What the methods of an edit do to a model and to a file."""
    model, tokens = world.model, torch.arange(1, 9)[None]

    def weights() -> list[Any]:
        return numbers(model.state_dict())

    found = [weights()]
    with world.edit.applied(model) as edited:
        assert edited is model
        found.append(weights())
    applied = world.edit.apply(model)
    found.append(weights())
    applied.revert()
    found.append(weights())
    assert found[1] == found[2] != found[0] == found[3]
    path = world.folder / "edit.safetensors"
    world.edit.save(path, overwrite=True)
    found.append(numbers(rl.Edit.load(path).updates))
    return [*found, numbers(world.trace.to_frame()), len(world.edit.hooks(model)), tokens.shape]


def called(name: str, world: World, arguments: dict[str, Any]) -> Any:
    return carried(world) if name == "carried" else numbers(PUBLIC[name](**arguments))


@pytest.mark.parametrize(("name", "world"), TRIED, indirect=["world"])
def test_what_the_caller_has_set_changes_no_number_and_is_put_back(world, name, tmp_path, monkeypatch):
    """Nor is a number drawn from Python's, NumPy's or torch's own generators."""

    def arguments() -> dict[str, Any]:
        return {} if name == "carried" else CASES[name](world)

    def call(settings: list[str]) -> Any:
        folder = tmp_path / "-".join(["with", *settings])
        folder.mkdir()
        monkeypatch.chdir(folder)
        model, given = world.model, arguments()
        before = states()
        with ExitStack() as stack:
            for setting in settings:
                stack.enter_context(SETTINGS[setting](model))
            found = called(name, world, given)
        assert states() == before
        return found

    expected = call([])
    for settings in SETS:
        assert call(settings) == expected, settings


def surroundings() -> tuple[Any, ...]:
    modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    return (*modes, torch.get_default_dtype(), torch.get_default_device())


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_was_set_is_put_back_after_an_error_too(world, setting):
    with SETTINGS[setting](world.model):
        before = surroundings()
        with pytest.raises(ValueError, match="samples"):
            rl.causal_trace(world.model, FACT, samples=0)
        with pytest.raises(RuntimeError, match="inside"), world.edit.applied(world.model):
            assert surroundings() == before
            raise RuntimeError("inside")
        assert surroundings() == before
