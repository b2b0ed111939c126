"""The folder that a run keeps its work in: one run at a time, and nothing else in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rome_lens.errors import FormatError, UnavailableError
from rome_lens.storage.files import TEMPORARY, check_name, check_parents, writing
from rome_lens.storage.reading import existing_file

_LOCK = ".rome_lens.lock"


@contextmanager
def open_folder(folder: str | os.PathLike[str], *, holds: str, what: str) -> Iterator[Path]:
    """Locks the folder, made if missing, for this run until the body ends or the process dies.

    Temporary files of a killed run are removed. Other hidden files are left alone.

    Args:
        folder: The folder.
        holds: The file that a folder of this kind of work has; a folder without it has to be empty.
        what: Name of the work, for errors.

    Raises:
        FileNotFoundError: a folder or a pipe stands where the lock goes.
        FormatError: the folder holds other files.
        NotADirectoryError: it, or a parent, is a file.
        UnavailableError: another run has it open, the disk is full or not writable, or the name is too long.
        ValueError: no folder can have this name.
    """
    folder = Path(folder)
    check_name(folder / holds)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder. Choose another name.")
    check_parents(folder / holds)
    there = sorted(path.name for path in folder.glob("[!.]*"))
    if there and holds not in there:
        raise FormatError(f"{folder} holds {there[:3]} and no {what}. Choose a new or an empty folder.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(folder / _LOCK):
            existing_file(folder / _LOCK, "a lock")
        lock = FileLock(folder / _LOCK, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UnavailableError(
                f"Another run has {folder} open. Wait until it has ended, or choose another folder."
            ) from None
    try:
        for left_by_a_kill in filter(Path.is_file, folder.glob(TEMPORARY)):
            left_by_a_kill.unlink(missing_ok=True)
        yield folder
    finally:
        lock.release()
