"""Files that are either whole or not there, and one error for a disk that is full or read-only."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp

from safetensors import SafetensorError

from rome_lens.errors import UnavailableError

TEMPORARY = ".rome_lens-*.tmp"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP}


@contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary file beside `path`, which becomes `path` when the body ends without an error.

    Missing parent folders are made. If the body raises, `path` stays as it was.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false, or `path` is a folder.
        NotADirectoryError: a parent of `path` is a file.
        UnavailableError: the disk is full or not writable, or the name is too long.
        ValueError: no file can have this name.
    """
    path = Path(path)
    check_new_file(path, overwrite=overwrite)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix, suffix = TEMPORARY.split("*")
        descriptor, name = mkstemp(dir=path.parent, prefix=prefix, suffix=suffix)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            with temporary.open("rb+") as opened:
                os.fsync(opened.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def check_new_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raises what `new_file` would raise for this path, before any work is done. Nothing is written."""
    path = Path(path)
    check_name(path)
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder, expected the name of a file to write. Choose another name.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. Choose another name, or pass overwrite=True to replace it.")
    check_parents(path)


def check_name(path: Path) -> None:
    """Raises UnavailableError or ValueError if no file can have this name: it is too long, or is no text."""
    try:
        path.lstat()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UnavailableError(_refused(f"{str(path)[:100]}...", str(error.strerror))) from error
    except ValueError as error:  # a null character, or half of a surrogate pair
        raise ValueError(f"No file can have the name {str(path)!r:.200} ({error}). Choose another name.") from error


def check_parents(path: Path) -> None:
    """Raises NotADirectoryError or UnavailableError unless `path` can be created under its existing parents."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{parent} is a file, expected a folder for {path.name}. Move it away.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UnavailableError(_refused(path, "the folder may not be written to"))


def check_room(folder: Path, size: int) -> None:
    """Raises UnavailableError unless `size` bytes are free on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UnavailableError(
            f"{folder} needs {size / 1e6:.0f} MB, but {free / 1e6:.0f} MB of its disk are free. Free some room, or "
            "choose a folder on another disk."
        )


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the errors of a full or read-only disk, safetensors' own among them, into UnavailableError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        reason = str(error).partition("\n")[0]
        if number in _FULL:
            raise UnavailableError(
                f"There is no room for {path} ({reason}). Free some, or choose a place on another disk. What was there "
                "before is unharmed."
            ) from error
        if number in _REFUSED:
            raise UnavailableError(_refused(path, reason)) from error
        raise


def _refused(path: str | os.PathLike[str], reason: str) -> str:
    return f"{path} cannot be written ({reason}). Choose a place that you may write to."


def _error_number(error: OSError | SafetensorError) -> int | None:
    """The operating system's error number. safetensors has it in its text: "I/O error: ... (os error 28)"."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
