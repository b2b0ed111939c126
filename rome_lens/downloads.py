"""Data sets that are downloaded once and kept in the user's cache."""

from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import platformdirs
from tqdm.auto import tqdm

from rome_lens.errors import FormatError, UnavailableError
from rome_lens.files import new_file
from rome_lens.reading import load_json

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


def downloaded(name: str, *, timeout: float = 30) -> Path:
    """The file of the data set `name`, one of ADDRESSES: from the cache, or downloaded into it.

    What is kept has the length that the server told and is JSON; its publishers give no checksums. Shows a bar.

    Args:
        name: of the data set.
        timeout: how many seconds to wait for the server to answer, or to go on.

    Raises:
        UnavailableError: the address cannot be reached, or what came is not the whole file, or is not JSON.
    """
    address = ADDRESSES[name]
    path = platformdirs.user_cache_path("rome_lens") / "datasets" / f"{name}.json"
    if path.is_file():
        return path
    try:
        with urlopen(address, timeout=timeout) as answer, new_file(path, overwrite=True) as temporary:
            length = int(answer.headers.get("Content-Length", 0))
            with (
                tqdm(total=length or None, desc=path.name, unit="B", unit_scale=True) as bar,
                temporary.open("wb") as opened,
            ):
                while block := answer.read(1 << 20):
                    opened.write(block)
                    bar.update(len(block))
            if length and temporary.stat().st_size != length:
                raise OSError(f"{temporary.stat().st_size} of {length} bytes came")
            load_json(temporary)
    except (OSError, HTTPException, FormatError) as error:
        raise UnavailableError(
            f"The data set {name} could not be downloaded from {address} ({error}). Connect and try again, or download "
            "it on another machine and pass the file's path."
        ) from error
    return path
