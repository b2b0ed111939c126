"""Tensors that are saved while they grow, so that a stopped run resumes where it was."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from torch import Tensor

from rome_lens.storage.files import check_room
from rome_lens.storage.folder import open_folder
from rome_lens.storage.identity import check_same
from rome_lens.storage.tensors import check_facts, load_tensors, save_tensors

_STATE = "checkpoint.safetensors"
_SECONDS_BETWEEN_SAVES = 60.0
_LEAST_ROOM = 1 << 20


@contextmanager
def open_checkpoint(
    folder: str | os.PathLike[str] | None,
    *,
    kind: str,
    identity: Mapping[str, Any],
    facts: Mapping[str, type | UnionType],
    size: int = 0,
) -> "Iterator[Checkpoint]":
    """Opens the checkpoint in a folder for this run alone.

    Args:
        folder: Where the tensors are kept (see `open_folder`); None: nowhere.
        kind: Kind of work.
        identity: What the tensors depend on, as `plain` values by name.
        facts: Names and types of the facts that are kept beside them.
        size: Number of bytes that the tensors will take.

    Raises:
        FormatError: the folder was begun with other work, or holds foreign or damaged files.
        NotADirectoryError, UnavailableError: as `open_folder`; or there is too little room.
    """
    if folder is None:
        yield Checkpoint(None, kind, identity)
        return
    with open_folder(folder, holds=_STATE, what=kind) as opened:
        path = opened / _STATE
        found = None
        if path.exists():
            tensors, kept = load_tensors(path, kind=kind, facts={"identity": dict, "state": dict})
            check_facts(path, kept["state"], facts)
            check_same(opened, kept["identity"], identity)
            found = tensors, kept["state"]
        check_room(opened, _LEAST_ROOM + (size if found else 2 * size))  # the old one stays until the new one is whole
        yield Checkpoint(path, kind, identity, found)


@dataclass
class Checkpoint:
    """The tensors of a run, as opened by `open_checkpoint`.

    Attributes:
        path: the file; None: nothing is kept.
        found: the tensors and facts that were there when it was opened; None: there were none.
    """

    path: Path | None
    kind: str
    identity: Mapping[str, Any]
    found: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        self._saved = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last save was at least a minute ago; always False if nothing is kept."""
        return self.path is not None and time.monotonic() - self._saved >= _SECONDS_BETWEEN_SAVES

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replaces what was saved before, completely or not at all.

        Raises:
            UnavailableError: the disk is full or not writable; the previous save is intact.
        """
        if self.path is not None:
            both = {"identity": self.identity, "state": facts}
            save_tensors(self.path, tensors, kind=self.kind, facts=both, overwrite=True)
            self._saved = time.monotonic()
