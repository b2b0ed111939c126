"""Every public function and class says what is wrong with what it is given."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rome_lens as rl

HERE = Path(__file__).parent


@pytest.mark.torture
@pytest.mark.parametrize("cases", ["public_cases.py", "caller_cases.py"])
def test_everything_public(cases):
    """Refuses what it cannot use, and computes the same whatever its caller has set for torch or the model.

    In a process without the tests' type checker, which would speak before the package does.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", str(HERE / cases)]
    root = HERE.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    print(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout[-10_000:]


@pytest.mark.parametrize("call", ["causal_trace", "restore_states"])
def test_a_warning_points_at_the_line_that_called(tiny, call):
    fact = rl.Fact("{} is located in the city of", "The Eiffel Tower", "Antarctica")
    states = [[rl.locate.State("mlp", 3, 1)]] if call == "restore_states" else []
    with pytest.warns(UserWarning, match="does not predict ' Antarctica'") as caught:
        getattr(rl.locate, call)(tiny, fact, *states, samples=1)
    assert [warning.filename for warning in caught] == [__file__]
