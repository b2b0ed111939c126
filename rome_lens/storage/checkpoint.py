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
        FileNotFoundError: a folder or a pipe stands in place of one of its files.
        FormatError: the folder was begun with other work, or holds foreign or damaged files.
        NotADirectoryError, UnavailableError: as `open_folder`; or there is too little room.
    """
    if folder is None:
        yield Checkpoint(None, kind, identity)
        return
    with open_folder(folder, holds=_STATE, what=kind) as opened:
        path = opened / _STATE
        found = read_checkpoint(opened, kind=kind, identity=identity, facts=facts)
        check_room(opened, _LEAST_ROOM + (size if found else 2 * size))  # the old one stays until the new one is whole
        yield Checkpoint(path, kind, identity, found)


def read_checkpoint(
    folder: str | os.PathLike[str], *, kind: str, identity: Mapping[str, Any], facts: Mapping[str, type | UnionType]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and facts that a folder keeps, even while a run replaces them; None: there are none.

    Raises:
        FileNotFoundError: a folder or a pipe stands in their place.
        FormatError: they are of other work, or damaged.
    """
    path = Path(folder) / _STATE
    if not os.path.lexists(path):
        return None
    tensors, kept = load_tensors(path, kind=kind, facts={"identity": dict, "state": dict})
    check_facts(path, kept["state"], facts)
    check_same(folder, kept["identity"], identity)
    return tensors, kept["state"]


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
