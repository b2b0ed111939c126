"""RippleEdits (Cohen et al. 2023, arXiv 2307.12976)."""

from collections.abc import Mapping
from typing import Any

from rome_lens.data.cases import RIPPLE_AXES, RippleQuery, RippleRecord, RippleTest
from rome_lens.data.readers.evoke import aliases_of
from rome_lens.data.readers.reading import list_field, object_field, text_field
from rome_lens.data.records import EditRequest

_README = {"Relation_Specificity": "Relation_Specifity"}  # as the authors' README spells it
_LEAD = " of "


def ripple_record(record: Mapping[str, Any], index: int) -> RippleRecord:
    """A record. Its file names no subject and no target: both stand in the edit's sentence.

    "The name of the country of citizenship of Leonardo DiCaprio is Syria." is cut at its last " is ", and the
    subject is what stands after the last " of " before it.
    """
    sentence = text_field(object_field(record["edit"], "edit")["prompt"], "edit prompt").strip().removesuffix(".")
    asked, verb, target = sentence.rpartition(" is ")
    lead, of, subject = asked.rpartition(_LEAD)
    if not (verb and of and target.strip() and subject.strip()):
        raise ValueError(f"The edit prompt {sentence!r} is not of the form '... of SUBJECT is TARGET.'")
    tests = {axis: _tests(record, axis) for axis in RIPPLE_AXES}
    request = EditRequest(f"{lead}{of}{{}} is", subject.strip(), target.strip())
    return RippleRecord(request, {axis: found for axis, found in tests.items() if found}, index)


def _tests(record: Mapping[str, Any], axis: str) -> tuple[RippleTest, ...]:
    name = axis if axis in record else _README.get(axis, axis)
    return tuple(_test(object_field(each, f"{axis} test")) for each in list_field(record[name], axis))


def _test(test: Mapping[str, Any]) -> RippleTest:
    condition = test.get("test_condition", "OR")
    if condition not in ("OR", "AND"):
        raise ValueError(f"The test_condition is {condition!r}, expected 'OR' or 'AND'.")
    return RippleTest(_queries(test, "test_queries"), condition, _queries(test, "condition_queries"))


def _queries(test: Mapping[str, Any], field: str) -> tuple[RippleQuery, ...]:
    return tuple(_query(object_field(each, field)) for each in list_field(test[field], field))


def _query(query: Mapping[str, Any]) -> RippleQuery:
    answers = [object_field(answer, "answer") for answer in list_field(query["answers"], "answers")]
    names = tuple((text_field(each["value"], "answer value"), *aliases_of(each)) for each in answers)
    return RippleQuery(text_field(query["prompt"], "query prompt"), names)
