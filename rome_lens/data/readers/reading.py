"""Reading the records of a file one by one, and saying which of them are broken and why."""

import os
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rome_lens.data.downloads import downloaded
from rome_lens.data.record_files import read_records
from rome_lens.data.records import check_text
from rome_lens.errors import DataWarning, FormatError, warn

T = TypeVar("T")
_REASONS_SHOWN = 10


def file(path: str | os.PathLike[str] | None, name: str, refresh: bool) -> str | os.PathLike[str]:
    """The path; or, without one, the downloaded file of the data set `name`."""
    if path is None:
        return downloaded(name, refresh=refresh)
    if refresh:
        raise ValueError(f"refresh=True fetches a data set again, but a file was given: {path}. Leave one of them out.")
    return path


def parse_records(path: str | os.PathLike[str], read: Callable[[Mapping[str, Any], int], T], strict: bool) -> list[T]:
    """The records of a file, each converted by `read(record, index)`."""
    return parse_list(read_records(path), str(path), read, strict)


def parse_list(raw: Any, path: str, read: Callable[[Mapping[str, Any], int], T], strict: bool) -> list[T]:
    """`parse_records` for records that are read already; `path` tells in errors where they are from."""
    if not isinstance(raw, list):
        raise FormatError(f"{path} holds a JSON {type(raw).__name__}, expected a list of records.")
    records: dict[int, T] = {}
    broken: dict[int, str] = {}
    for index, record in enumerate(raw):
        try:
            records[index] = read(object_field(record, "record"), index)
        except KeyError as error:
            broken[index] = f"lacks the field {error}"
        except (TypeError, ValueError) as error:
            broken[index] = f"is broken: {error}"
    numbered: dict[int, int] = {}
    for index, made in records.items():
        number = getattr(made, "case_id", None)
        if number is not None and (first := numbered.setdefault(number, index)) != index:
            broken[index] = f"has the case_id {number} of record {first}"
    if broken and strict:
        index, reason = next(iter(broken.items()))
        raise FormatError(
            f"Record {index} of {path} {reason}. Is it another data set? strict=False leaves such records out."
        )
    records = {index: made for index, made in records.items() if index not in broken}
    if broken and not records:
        raise FormatError(f"None of the {len(raw)} records of {path} is whole: record 0 {broken[0]}.")
    if broken:
        reasons = "; ".join(f"record {index} {reason}" for index, reason in list(broken.items())[:_REASONS_SHOWN])
        more = f"; and the records {list(broken)[_REASONS_SHOWN:]}" if len(broken) > _REASONS_SHOWN else ""
        warn(f"Left out {len(broken)} of the {len(raw)} records of {path}: {reasons}{more}.", DataWarning)
    return list(records.values())


def first_answer(value: Any, field: str) -> str | None:
    """The first answer in "x", ["x", ...] or [["x", an alias, ...], ...] that is not blank; None if there is none."""
    answers = value if isinstance(value, list) else [value]
    aliases = [alias for answer in answers for alias in (answer if isinstance(answer, list) else [answer])]
    texts = [of_type(str, alias, field, "a text, a list of texts or a list of lists of texts") for alias in aliases]
    return next((text for text in texts if text.strip()), None)


def needed_answer(value: Any, field: str) -> str:
    """`first_answer`, which has to be there. Raises TypeError or ValueError."""
    if (answer := first_answer(value, field)) is None:
        raise ValueError(f"The {field} is {reprlib.repr(value)}, expected a text that is not empty.")
    return answer


def text_field(value: Any, field: str) -> str:
    """The value, a text that is not blank. Raises TypeError or ValueError."""
    check_text(of_type(str, value, field, "a string"), field)
    return value


def list_field(value: Any, field: str) -> list[Any]:
    """The value, a list. Raises TypeError."""
    return of_type(list, value, field, "a list")


def object_field(value: Any, field: str) -> Mapping[str, Any]:
    """The value, a JSON object. Raises TypeError."""
    return of_type(dict, value, field, "an object with named fields")


def of_type(kind: type[T], value: Any, field: str, what: str) -> T:
    """The value, if it is of this type. Else raises a TypeError that says that `what` was expected."""
    if not isinstance(value, kind):
        raise TypeError(f"The {field} is {reprlib.repr(value)}, expected {what}.")
    return value
