"""Sources of text for key covariances: a file, a dataset of the Hugging Face hub, or the model itself."""

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rome_lens.checking import check_seed, check_whole, checked
from rome_lens.errors import FormatError, UnavailableError
from rome_lens.models import Model, check_model, sample_texts
from rome_lens.models.tokens import blocks
from rome_lens.storage import existing_file

_SHUFFLED = 1_000


@checked
@dataclass(frozen=True)
class Texts:
    """Texts that are read lazily, and from the start again in each iteration.

    Attributes:
        corpus: name of the texts.
        read: returns a new iterator over them.
    """

    corpus: str
    read: Callable[[], Iterator[str]] = field(repr=False)

    def __iter__(self) -> Iterator[str]:
        return self.read()


@checked
def texts_from_file(path: str | os.PathLike[str]) -> Texts:
    """The text of a UTF-8 file, in blocks of about a million characters.

    Raises:
        FormatError: (while reading) the file is not UTF-8.
    """
    path = existing_file(path, "a text file")

    def read() -> Iterator[str]:
        with existing_file(path, "a text file").open(encoding="utf-8") as opened:
            try:
                yield from blocks(opened)
            except UnicodeDecodeError as error:
                raise FormatError(f"{path} is not UTF-8 text ({error}). Convert it.") from error

    return Texts(path.name, read)


@checked
def texts_from_dataset(
    name: str, config: str | None = None, *, split: str = "train", column: str = "text", seed: int | None = None
) -> Texts:
    """The texts of a dataset, streamed: only what is read is downloaded.

    The paper used Wikipedia: `texts_from_dataset("wikimedia/wikipedia", "20231101.en", seed=0)`. A smaller one:
    `texts_from_dataset("Salesforce/wikitext", "wikitext-103-raw-v1")`. The package
    datasets reads Parquet with code that a damaged file can crash: give folders that you trust.

    Args:
        name: Name of a dataset on the Hugging Face hub, or a folder that holds one (Parquet, JSON lines, text).
        config: The dataset's configuration.
        split: The dataset's split.
        column: Column with the texts.
        seed: Shuffles the files and, within a window, the texts; None keeps the dataset's order.

    Raises:
        UnavailableError: the hub cannot be reached or lacks the dataset, or `datasets` is not installed.
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
    """An endless stream of texts sampled from the model, for when no corpus is at hand.

    They follow the model's own distribution, not that of human text. Sampling takes much longer than collecting keys.

    Args:
        model: Model that writes; it and torch's random state are left unchanged.
        seed: Seed of the sampling; each iteration gives the same texts.
        new_tokens: Tokens in a text; at most the model's context.
        texts_at_once: Texts sampled in one batch.

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
