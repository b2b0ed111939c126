"""What a user notices before the first call: how long the import takes, and what it says."""

import os
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest

import rome_lens
from rome_lens import version as versions


def python(*options: str, script: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs a script without the tests' type checker, which makes imports slow."""
    command = [sys.executable, *options, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True)


def test_the_import_takes_less_than_a_second_more_than_transformer_lens():
    """In seconds of this process' own work, at best of three times: what runs beside it takes the caches away."""
    script = """
        import time
        import transformer_lens.model_bridge
        before = time.process_time()
        import rome_lens
        print(time.process_time() - before)
    """
    seconds = (float(python(script=script).stdout.splitlines()[-1]) for _ in range(3))
    assert any(each < 1.0 for each in seconds)


def test_what_only_some_calls_need_is_not_imported():
    script = """
        import sys
        import transformer_lens.model_bridge
        before = set(sys.modules)
        import rome_lens
        print(" ".join({name.split(".")[0] for name in set(sys.modules) - before}))
    """
    imported = set(python(script=script).stdout.splitlines()[-1].split())
    assert imported.isdisjoint({"datasets", "gguf", "jinja2", "matplotlib", "nbformat", "peft", "sklearn"})
    assert "rome_lens" in imported


def test_no_warning_of_a_dependency_reaches_the_user(tiny_folder):
    script = """
        import sys
        import rome_lens as rl
        model = rl.load_model(sys.argv[1], device="cpu")
        trace = rl.causal_trace(model, rl.Fact("{} is in", "The Eiffel Tower"), samples=2, progress=False)
        print(trace.clean)
    """
    done = python("-W", "default", script=script, arguments=(str(tiny_folder("llama-gqa")),))
    assert "Warning" not in done.stderr, done.stderr
    assert 0 < float(done.stdout.splitlines()[-1]) < 1


def test_the_version_is_that_of_the_installed_package():
    assert rome_lens.__version__ == version("rome-lens")


def test_libraries_beyond_what_was_tested_are_named_in_one_warning(monkeypatch):
    versions.warn_of_newer()  # which it is not here, or `make test-newest` lets it pass
    running = {"transformers": "5.25.0.dev0", "torch": "2.13.1+cu126", "pandas": "4.0"}
    monkeypatch.setattr(versions, "version", lambda name: running.get(name) or versions.NEWEST[name])
    with pytest.warns(rome_lens.errors.VersionWarning) as caught:
        versions.warn_of_newer()
    (warning,) = caught
    assert "transformers 5.25.0.dev0 (tested up to 5.24), pandas 4.0 (tested up to 3)." in str(warning.message)
    assert warning.filename == __file__


def test_the_warning_points_at_the_import():
    script = """
        import importlib.metadata
        given = importlib.metadata.version
        importlib.metadata.version = lambda name: "99.0" if name == "transformers" else given(name)
        import rome_lens
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "<string>:5: VersionWarning: rome_lens was not tested with transformers 99.0" in done.stderr


def test_the_constraints_are_not_beyond_what_was_tested(monkeypatch):
    pinned = dict(line.split("==") for line in Path("constraints.txt").read_text().splitlines() if "==" in line)
    monkeypatch.setattr(versions, "version", lambda name: pinned[name])
    versions.warn_of_newer()


def test_only_libraries_that_are_always_installed_are_watched_for_newer_versions():
    """The import asks for their versions, and fails where one is not there."""
    needed = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    needed = needed.split("\ndependencies = [")[1].split("]")[0]
    assert all(f'"{name}>=' in needed for name in versions.NEWEST)
