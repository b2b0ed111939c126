"""Edits that a run stores beside its journal, so that none is computed twice."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rome_lens.data.records import EditRequest
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.methods.memory import MEMORY, FactMemory
from rome_lens.storage import check_same, kind_of, plain

Kept = TypeVar("Kept", bound=Edit | FactMemory)


def kept_edit(path: Path, requests: Sequence[EditRequest], make: Callable[[], Kept]) -> Kept:
    """The edit, or the memory, stored at `path`; if there is none, `make` computes it and it is saved there.

    Raises:
        FormatError: the file holds an edit of other requests, or is damaged.
    """
    if not os.path.lexists(path):
        make().save(path)
    edit: Any = (FactMemory if kind_of(path) == MEMORY else Edit).load(path)
    found, expected = (
        {f"request {i}": plain(each) for i, each in enumerate(those)} for those in (edit.requests, requests)
    )
    check_same(path, found, expected | dict.fromkeys(found.keys() - expected.keys()))
    return edit
