"""Edits that a run keeps beside its journal, so that it computes none twice."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rome_lens.data.records import EditRequest
from rome_lens.edit.artifact.edit import Edit
from rome_lens.storage import check_same, plain


def kept_edit(path: Path, requests: Sequence[EditRequest], make: Callable[[], Edit]) -> Edit:
    """The edit of these requests in this file, or else the one that is made now, saved there.

    Raises:
        FormatError: the file holds the edit of other requests, or is damaged.
    """
    if not path.exists():
        make().save(path)
    edit = Edit.load(path)
    found, asked = (
        {f"request {i}": plain(each) for i, each in enumerate(those)} for those in (edit.requests, requests)
    )
    check_same(path, found, asked | dict.fromkeys(found.keys() - asked.keys()))
    return edit
