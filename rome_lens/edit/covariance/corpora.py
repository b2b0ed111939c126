"""Ordinary text to collect key covariances from: a file, a dataset of the Hugging Face hub, the model itself."""

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rome_lens.checking import check_seed, check_whole, checked
from rome_lens.errors import FormatError, UnavailableError
from rome_lens.models import Model, check_model, sample_texts

_BLOCK = 1 << 20  # characters: tokenised at once, and cut at a line's end, so that few tokens differ from the whole's
_SHUFFLED = 1_000


@checked
@dataclass(frozen=True)
class Texts:
    """Texts that are read as they are needed, and from their start again by each loop over them.

    Attributes:
        corpus: what they are.
        read: starts a reading.
    """

    corpus: str
    read: Callable[[], Iterator[str]] = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        return self.read()


@checked
def texts_from_file(path: str | os.PathLike[str]) -> Texts:
    """The text of a file in UTF-8, in blocks of about a million characters: never the whole file at once.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: while reading: the file is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}, expected a text file.")

    def read() -> Iterator[str]:
        with path.open(encoding="utf-8") as opened:
            try:
                while block := opened.read(_BLOCK):
                    yield block + opened.readline(_BLOCK)
            except UnicodeDecodeError as error:
                raise FormatError(f"{path} is not a text in UTF-8 ({error}). Convert it.") from error

    return Texts(path.name, read)


@checked
def texts_from_dataset(
    name: str, config: str | None = None, *, split: str = "train", column: str = "text", seed: int | None = None
) -> Texts:
    """The texts of a dataset, streamed: no more of it is downloaded than is read.

    The paper used Wikipedia: `texts_from_dataset("wikimedia/wikipedia", "20231101.en", seed=0)`. A smaller one:
    `texts_from_dataset("Salesforce/wikitext", "wikitext-103-raw-v1")`.

    Args:
        name: of a dataset on the Hugging Face hub, or a folder that holds one (Parquet, JSON lines, text).
        config: which of the dataset's configurations.
        split: which part.
        column: holds the texts.
        seed: shuffles the files and, in a window, the texts; None: in the dataset's own order.

    Raises:
        UnavailableError: the hub cannot be reached or does not have it, or `datasets` is not installed.
        ValueError: no such config, split or column.
    """
    check_seed(seed)
    if importlib.util.find_spec("datasets") is None:
        raise UnavailableError("Reading a dataset needs the package datasets: pip install 'rome-lens[datasets]'.")
    import datasets

    with _reaching(name):
        dataset = datasets.load_dataset(name, config, split=split, streaming=True)
        columns = list(next(iter(dataset), {}))
    if column not in columns:
        raise ValueError(f"{name} has the columns {columns}, expected {column!r}. Pass column=...")
    if seed is not None:
        dataset = dataset.shuffle(seed=seed, buffer_size=_SHUFFLED)

    def read() -> Iterator[str]:
        with _reaching(name):
            for row in dataset:
                yield row[column]

    order = "" if seed is None else f"seed {seed}"
    return Texts(", ".join(filter(None, (name, config, split, order))), read)


@contextmanager
def _reaching(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"The dataset {name!r} could not be reached, or is not there ({str(error).splitlines()[0]}). Connect, and "
            "unset HF_HUB_OFFLINE; or download it on another machine and pass its folder; or give a text file "
            "(texts_from_file) or text that the model writes (texts_from_model)."
        ) from error


@checked
def texts_from_model(model: Model, *, seed: int = 0, new_tokens: int = 256, texts_at_once: int = 16) -> Texts:
    """Texts without end that the model writes from nothing, where there is no text at hand.

    They are drawn from the model's own distribution, so they hold what it finds likely, not what people wrote. Writing
    them takes much longer than collecting keys from them.

    Args:
        model: writes; its and torch's random state are left as they are.
        seed: of the sampling; the same texts come at each reading.
        new_tokens: in a text, at most what the model's context leaves room for.
        texts_at_once: sampled as one batch.

    Raises:
        ValueError: one of the numbers is below 1.
    """
    check_model(model)
    check_seed(seed)
    check_whole(new_tokens=new_tokens, texts_at_once=texts_at_once)
    length = min(new_tokens, model.cfg.n_ctx - 1)

    def read() -> Iterator[str]:
        for batch in itertools.count():
            yield from sample_texts(model, texts_at_once, new_tokens=length, seed=seed + batch)

    return Texts(f"written by {model.cfg.model_name}, seed {seed}", read)
