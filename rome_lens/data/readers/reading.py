"""Reading the records of a file one by one, and saying which of them are broken and why."""

import os
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar, cast

from rome_lens.data.downloads import downloaded
from rome_lens.data.record_files import read_records
from rome_lens.data.records import check_text
from rome_lens.errors import DataWarning, FormatError, warn

T = TypeVar("T")
_REASONS_SHOWN = 10
PUBLISHED_UNUSED = re.compile(
    "pararel_idx|generation_prompts|attribute_prompts"  # CounterFact's; the latter two of what extends it
    "|alt|answers|pred|cond"  # zsRE's
    "|answer_alias|single_hops|orig|answer_extended|split"  # MQuAKE's
    "|topic|relation|label|multiple_choices|eval_.*"  # HalluEditBench's
    "|source|category|example_type|context|doc|input|prompt|target_(true|false)_id"
    "|known_id|template|prediction|relation_id"  # known_1000's
)
"""Fields that published data sets have and no record takes up; docs/own_data.md says so of those that matter."""


def file(path: str | os.PathLike[str] | None, name: str, refresh: bool) -> str | os.PathLike[str]:
    """The path; or, without one, the downloaded file of the data set `name`."""
    if path is None:
        return downloaded(name, refresh=refresh)
    if refresh:
        raise ValueError(f"refresh=True fetches a data set again, but a file was given: {path}. Leave one of them out.")
    return path


class _Noted(dict[str, Any]):
    """A record that notes which of its fields are read."""

    def __init__(self, record: Mapping[str, Any]):
        super().__init__(record)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def parse_records(path: str | os.PathLike[str], read: Callable[[Mapping[str, Any], int], T], strict: bool) -> list[T]:
    """The records of a file, each converted by `read(record, index)`."""
    return parse_list(read_records(path), str(path), read, strict)


def parse_list(
    raw: Any,
    path: str,
    read: Callable[[Mapping[str, Any], int], T],
    strict: bool,
    *,
    unused: "re.Pattern[str]" = PUBLISHED_UNUSED,
) -> list[T]:
    """`parse_records` for records that are read already; `path` tells in errors where they are from.

    Warns:
        DataWarning: of fields that no record's reader looked at, but for those of the names `unused`; of case_ids that
            several records have, which are numbered anew; and of what is left out.
    """
    if not isinstance(raw, list):
        raise FormatError(f"{path} holds a JSON {type(raw).__name__}, expected a list of records.")
    records: dict[int, T] = {}
    broken: dict[int, str] = {}
    fields: dict[str, bool] = {}
    for index, record in enumerate(raw):
        try:
            noted = _Noted(object_field(record, "record"))
            records[index] = read(noted, index)
            for name in noted.keys() - fields.keys() | noted.read:
                fields[name] = name in noted.read
        except KeyError as error:
            broken[index] = f"lacks the field {error}"
        except (TypeError, ValueError) as error:
            broken[index] = f"is broken: {error}"
    if broken and strict:
        index, reason = next(iter(broken.items()))
        raise FormatError(
            f"Record {index} of {path} {reason}. Is it another data set? strict=False leaves such records out."
        )
    if broken and not records:
        raise FormatError(f"None of the {len(raw)} records of {path} is whole: record 0 {broken[0]}.")
    if broken:
        reasons = "; ".join(f"record {index} {reason}" for index, reason in list(broken.items())[:_REASONS_SHOWN])
        more = f"; and the records {list(broken)[_REASONS_SHOWN:]}" if len(broken) > _REASONS_SHOWN else ""
        warn(f"Left out {len(broken)} of the {len(raw)} records of {path}: {reasons}{more}.", DataWarning)
    if ignored := [str(name) for name, used in fields.items() if not used and not unused.fullmatch(str(name))]:
        warn(
            f"Nothing reads the fields {', '.join(sorted(ignored))} of the records of {path}. Rename what matters, or "
            "leave them out (docs/own_data.md lists the names; load_records knows more than readers of one family).",
            DataWarning,
        )
    return _numbered(list(records.values()), path)


def _numbered(records: list[T], path: str) -> list[T]:
    """The records; those with the case_id of an earlier one have the next that nobody has."""
    if not records or not hasattr(records[0], "case_id"):
        return records
    free = count(max(cast(Any, record).case_id for record in records) + 1)
    taken: set[int] = set()
    anew = {}
    for index, record in enumerate(records):
        number = cast(Any, record).case_id
        if number in taken:
            number = anew[index] = next(free)
            records[index] = replace(cast(Any, record), case_id=number)
        taken.add(number)
    if anew:
        warn(
            f"{len(anew)} of the {len(records)} records of {path} have the case_id of an earlier one, and are numbered "
            f"anew: {reprlib.repr(list(anew.values()))}.",
            DataWarning,
        )
    return records


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


def number_field(value: Any, field: str) -> int:
    """The value, a whole number or, as in a table's cell, a text of one. Raises TypeError."""
    if isinstance(value, float | str) and re.fullmatch(r"-?\d{1,18}(\.0)?", str(value).strip()):
        value = int(float(value))
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"The {field} is {reprlib.repr(value)}, expected a whole number. Without it, places count.")
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
