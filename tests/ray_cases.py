"""What runs in Ray's workers during tests: functions that they import by name."""

import os
import signal
from functools import partial
from pathlib import Path

import torch


def name_and_threads(model, item) -> tuple:
    return item, str(model.cfg.model_name), torch.get_num_threads()


def refuse(model, item) -> None:
    raise ValueError(f"no {item}")


def die_once(marker: Path) -> None:
    """Kills this process the first time that anybody asks."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def die_on_three(model, item, *, marker: Path) -> int:
    if item == 3:
        die_once(marker)
    return item * item


def die_always(model, item) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(function, marker: Path):
    """The same method or score, but the first worker that is asked for its second record dies."""
    return partial(_dying, function=function, marker=marker)


def _dying(model, about, *, function, marker: Path):
    if "Colosseum" in repr(about):
        die_once(marker)
    return function(model, about)
