"""Data sets that are downloaded once, into the user's cache."""

import time
from collections.abc import Iterator
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import platformdirs
from tqdm.auto import tqdm

from rome_lens.errors import FormatError, UnavailableError
from rome_lens.storage import MOST_JSON_BYTES, load_json, new_file

_AUTHORS = "https://rome.baulab.info/data/dsets"
_KNOWEDIT = "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark"
ADDRESSES = {
    "counterfact": f"{_AUTHORS}/counterfact.json",
    "known_1000": f"{_AUTHORS}/known_1000.json",
    "zsre_mend_eval": f"{_AUTHORS}/zsre_mend_eval.json",
    "attribute_snippets": f"{_AUTHORS}/attribute_snippets.json",
    "wiki_recent": f"{_KNOWEDIT}/wiki_recent/recent_test.json",
    "wiki_counterfact": f"{_KNOWEDIT}/wiki_counterfact/test_cf.json",
}
_FIELDS = {  # a field of every record, which tells a data set from an error page
    "counterfact": "requested_rewrite",
    "known_1000": "attribute",
    "zsre_mend_eval": "loc_ans",
    "attribute_snippets": "samples",
    "wiki_recent": "portability",
    "wiki_counterfact": "portability",
}
_SLOWEST = 1000  # bytes a second


def downloaded(name: str, *, refresh: bool = False, timeout: float = 30.0) -> Path:
    """The file of a data set, from the cache or downloaded into it with a progress bar.

    Only HTTPS is used. A file is kept if its length or its end is known from the server and has come, at most 512 MB,
    and it is a JSON list of this data set's records (its publishers give no checksums). An older file stays until the
    new one is whole.

    Args:
        name: One of ADDRESSES.
        refresh: Download the file again, even if the cache has it.
        timeout: Seconds to wait for the server to answer or to send more.

    Raises:
        UnavailableError: the address cannot be reached, the file came incomplete or is something else, or the cache
            cannot be written.
    """
    path = platformdirs.user_cache_path("rome_lens") / "datasets" / f"{name}.json"
    if path.is_file() and not refresh:
        return path
    try:
        with new_file(path, overwrite=True) as temporary:
            with temporary.open("wb") as opened:
                for block in _blocks(name, timeout):
                    opened.write(block)
            _check(name, temporary)
    except UnavailableError:
        raise
    except OSError as error:
        raise UnavailableError(
            f"The data set {name} cannot be kept in the cache: {path} cannot be written ({error}). Make room or give "
            "another folder as XDG_CACHE_HOME, or download it yourself and pass the file's path."
        ) from error
    return path


def _blocks(name: str, timeout: float) -> Iterator[bytes]:
    """The file, block by block. Whatever goes wrong on the way becomes an UnavailableError."""
    address = ADDRESSES[name]
    try:
        with _open(address, timeout) as answer:
            if answer.status != 200:
                raise OSError(f"the server answered with the status {answer.status}")
            if answer.length is None and not answer.chunked:  # a connection that breaks off would look like the end
                raise OSError("the server tells no length, so that nobody can tell whether all of it came")
            length, came, begun = answer.length or 0, 0, time.monotonic()
            with tqdm(total=length or None, desc=name, unit="B", unit_scale=True) as bar:
                while block := answer.read1(1 << 16):
                    came += len(block)
                    seconds = time.monotonic() - begun
                    if max(came, length) > MOST_JSON_BYTES:
                        raise OSError(f"it is {max(came, length)} bytes long, expected at most {MOST_JSON_BYTES}")
                    if seconds > timeout and came < _SLOWEST * seconds:
                        raise OSError(f"only {came} bytes came in {seconds:.0f} s")
                    bar.update(len(block))
                    yield block
            if length and came != length:
                raise OSError(f"{came} of {length} bytes came")
    except (OSError, HTTPException, ValueError) as error:
        raise _unavailable(name, error) from error


def _open(address: str, timeout: float) -> HTTPResponse:
    """Opens an HTTPS address; redirects may lead only to another one."""
    _check_secure(address)
    return build_opener(_SecureRedirects).open(address, timeout=timeout)


class _SecureRedirects(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        _check_secure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_secure(address: str) -> None:
    if urlsplit(address).scheme != "https":
        raise OSError(f"{address} would not be read by HTTPS")


def _check(name: str, path: Path) -> None:
    """Raises UnavailableError unless the file is a list of this data set's records."""
    try:
        records = load_json(path)
    except FormatError as error:
        raise _unavailable(name, error) from error
    field = _FIELDS[name]
    if not (isinstance(records, list) and records and all(isinstance(r, dict) and field in r for r in records)):
        start = path.read_text(encoding="utf-8")[:80]
        raise _unavailable(name, ValueError(f"what came is no list of records with {field!r}: {start!r}"))


def _unavailable(name: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"The data set {name} could not be downloaded from {ADDRESSES[name]} ({error}). Connect and try again, or "
        "download it on another machine and pass the file's path."
    )
