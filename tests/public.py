"""What is public: the flat names and those of the rooms."""

from types import ModuleType
from typing import Any

import rome_lens as rl

ROOMS = (rl.data, rl.locate, rl.edit, rl.evaluate, rl.plots, rl.errors)
"""Of `rl.models` only a few names are for users; its others are what the rest of the package asks for."""
OF_MODELS = ("Kind", "Model", "load_model", "optimize_layout")


def _found() -> dict[str, tuple[str, Any]]:
    paths = {}
    for room in ROOMS:
        paths |= {name: (f"{room.__name__}.{name}", getattr(room, name)) for name in room.__all__}
    paths |= {name: (f"rome_lens.models.{name}", getattr(rl.models, name)) for name in OF_MODELS}
    flat = {name: (f"rome_lens.{name}", getattr(rl, name)) for name in rl.__all__}
    return paths | {name: found for name, found in flat.items() if not isinstance(found[1], ModuleType)}


_PUBLIC = _found()
PUBLIC = {name: value for name, (_, value) in _PUBLIC.items()}
"""By its own name, which no two rooms share."""
DOCUMENTED = {name: path for name, (path, _) in _PUBLIC.items()}
"""Where the reference has it: under its flat name if it has one."""
