"""Fixtures: tiny random models, and SmolLM2-135M loaded once for all tests that need it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rome_lens as rl
from rome_lens.models import Model
from rome_lens.models.kinds import HAS_HOOKED
from tests.tiny import save_model

GOLDEN = Path(__file__).parent / "golden"
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    torch.set_num_threads(max(1, torch.get_num_threads() // int(workers)))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # of notebooks' kernels too


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object):
    """Each process takes whole files, whose tests share models; but notebooks, which share nothing, one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "::test_notebook_runs" in nodeid else nodeid.split("::")[0]

    config.option.loadscopereorder = False  # else the files of few tests, which are the slowest, come last
    return ByFile(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs the class HookedTransformer as such where TransformerLens has the Bridge alone."""
    if item.get_closest_marker("hooked") and not HAS_HOOKED:
        pytest.skip("needs HookedTransformer, which this TransformerLens does not have")


@pytest.fixture(autouse=True, scope="session")
def _no_hub():
    """No test may wait for a network."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it read the environment when it was imported
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the folder of a tiny model of a family, made once: tiny_folder("gpt2"), tiny_folder("llama", bos=True)."""
    made: dict[tuple, Path] = {}

    def make(family: str, *, bos: bool = False, seed: int = 0) -> Path:
        key = (family, bos, seed)
        if key not in made:
            made[key] = save_model(tmp_path_factory.mktemp("model") / family, family, bos=bos, seed=seed)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Callable[..., Path]) -> Callable[..., Model]:
    """Gives a tiny model of a family, loaded once. Tests leave it as they found it."""
    loaded: dict[Path, Model] = {}

    def load(family: str = "gpt2", **options) -> Model:
        folder = tiny_folder(family, **options)
        if folder not in loaded:
            loaded[folder] = rl.load_model(str(folder), device="cpu")
        return loaded[folder]

    return load


@pytest.fixture
def tiny(tiny_model: Callable[..., Model]) -> Model:
    """A tiny GPT-2."""
    return tiny_model("gpt2")


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """SmolLM2-135M. Tests leave it as they found it."""
    return rl.load_model("smollm2-135m", device="cpu")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict]:
    """Reads a file of golden numbers; tests/golden/README.md says where they come from."""

    def read(name: str) -> dict:
        path = GOLDEN / name
        return load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())

    return read


@pytest.fixture
def weights_of() -> Callable[[Model], dict[str, torch.Tensor]]:
    """Copies a model's weights, to compare later."""
    return lambda model: {name: value.clone() for name, value in model.state_dict().items()}
