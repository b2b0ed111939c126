"""Subjects that ship with the package: things of one kind, with names that end alike."""

from importlib import resources

from rome_lens.checking import checked
from rome_lens.data.records import Fact, fill
from rome_lens.storage import load_json


@checked
def load_subjects(word: str | None = None) -> list[Fact]:
    """The subjects that ship with this package, each in a natural prompt about its kind: 2,900 towers, bridges, people
    named Smith and others. Names that end alike have similar keys, so that edits of one reach the others.

    Args:
        word: only those whose names have this word, such as "Tower", at the end (or, mountains, at the start); None:
            all.

    Raises:
        ValueError: there are none with this word.
    """
    with resources.as_file(resources.files("rome_lens") / "data" / "builtin" / "subjects.json") as path:
        kinds = load_json(path)
    if word is not None and word not in (words := [kind["word"] for kind in kinds]):
        raise ValueError(f"No subjects with the word {word!r} ship, expected one of {', '.join(words)}.")
    chosen = [kind for kind in kinds if word in (None, kind["word"])]
    return [Fact(kind["prompt"], fill(kind["subject"], name)) for kind in chosen for name in kind["names"]]
