"""What made a result, as a JSON file beside it."""

import argparse
import hashlib
import json
import platform
import shlex
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

import rome_lens as rl
from rome_lens.models import Model, architecture_digest
from rome_lens.storage import new_file

from .options import program

PACKAGES = ("torch", "transformer-lens", "transformers", "numpy", "pandas", "plotly")
NAME = "manifest.json"


def write_manifest(options: argparse.Namespace, model: Model | None, **details: Any) -> Path:
    """Writes what made the results in the folder `options.out`: its manifest.json.

    It holds the command line, all options with their defaults (seeds are among them), SHA-256 of the files that options
    name, the model's name and `architecture_digest`, versions, the device and its threads, and the seconds, by the
    clock and of the processor, since the program began; a run that went on from earlier results did only what they
    lacked.

    Args:
        options: those of the program; `out` is the folder.
        model: that was run; None if none was.
        details: what else the results depend on, such as the noise that a default came to.
    """
    out: Path = options.out
    process = psutil.Process()
    values = [each for name, value in vars(options).items() if name != "out" for each in _each(value)]
    named = [Path(value) for value in values if isinstance(value, (str, Path))]
    made_by = {
        "command": f"{program()} {shlex.join(sys.argv[1:])}".rstrip(),
        "arguments": vars(options),
        "inputs": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in named if path.is_file()},
        "model": model and {"name": str(model.cfg.model_name), "architecture": architecture_digest(model)},
        **details,
        "versions": {"python": platform.python_version(), "rome_lens": rl.__version__}
        | {package: version(package) for package in PACKAGES},
        "device": model and str(model.cfg.device),
        "threads": torch.get_num_threads(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.time() - process.create_time(), 1),
        "cpu_seconds": round(sum(process.cpu_times()[:2]), 1),
    }
    path = out / NAME
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(made_by, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return path


def _each(value: Any) -> list[Any]:
    """The values of an option that takes several, or its one."""
    return value if isinstance(value, list) else [value]
