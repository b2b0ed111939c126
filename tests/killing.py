"""Runs that are killed at random moments, and begun again where they were."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path


def kill_at_random_moments(run: Callable[[Path], None], work: Path, kills: int) -> None:
    """Runs once in the folder `unbroken`; then in forks of this process, of which `kills` are killed with SIGKILL.

    A fork goes on in the folder of the one before it, `broken0` at first. One that ends before it is killed has made a
    whole of it, and the next begins another folder. The last one is ended in this process. kills.json counts them.
    """
    start = time.monotonic()
    run(work / "unbroken")
    seconds = time.monotonic() - start
    moments, killed, ended = random.Random(0), 0, 0
    while killed < kills:
        child = os.fork()
        if not child:
            run(work / f"broken{ended}")
            os._exit(0)
        time.sleep(moments.uniform(0, seconds / 2))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        ended += os.WIFEXITED(status)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    run(work / f"broken{ended}")
    (work / "kills.json").write_text(json.dumps(killed))
