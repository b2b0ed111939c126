"""Readers for fact sets in their original schemas, and the fact set that ships with the package."""

import os
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, TypeVar

from rome_lens.errors import FormatError
from rome_lens.facts import EditRecord, EditRequest, Fact
from rome_lens.files import load_json

T = TypeVar("T")


def load_counterfact(path: str | os.PathLike[str]) -> list[EditRecord]:
    """Reads CounterFact's JSON (paper section 3.4; `counterfact.json` of kmeng01/rome).

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: not JSON, or a record lacks a field or has a broken one; the message tells which.
    """
    return _records(path, _counterfact_record)


def load_known_facts(path: str | os.PathLike[str]) -> list[Fact]:
    """Reads the facts of the causal traces (paper section 2; `known_1000.json` of kmeng01/rome).

    The prompt is the record's `prompt` (its `template` is at times a shorter one), the answer its `attribute`.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: not JSON, or a record lacks a field or has a broken one; the message tells which.
    """
    return _records(path, _known_fact)


def load_builtin_records() -> list[EditRecord]:
    """The facts that ship with this package: SmolLM2-135M predicts each of them; CounterFact's schema."""
    with resources.as_file(resources.files("rome_lens") / "data" / "facts.json") as path:
        return load_counterfact(path)


def _records(path: str | os.PathLike[str], read: Callable[[Mapping[str, Any]], T]) -> list[T]:
    raw = load_json(path)
    if not isinstance(raw, list):
        raise FormatError(f"{path} holds a JSON {type(raw).__name__}, expected a list of records.")
    records = []
    for index, record in enumerate(raw):
        try:
            records.append(read(record))
        except KeyError as error:
            raise FormatError(f"Record {index} of {path} lacks the field {error}. Is it another data set?") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"Record {index} of {path} is broken: {error}") from error
    return records


def _counterfact_record(record: Mapping[str, Any]) -> EditRecord:
    rewrite = record["requested_rewrite"]
    return EditRecord(
        request=EditRequest(rewrite["prompt"], rewrite["subject"], rewrite["target_new"]["str"]),
        target_true=rewrite["target_true"]["str"],
        paraphrase_prompts=tuple(record["paraphrase_prompts"]),
        neighborhood_prompts=tuple(record["neighborhood_prompts"]),
        attribute_prompts=tuple(record["attribute_prompts"]),
        generation_prompts=tuple(record["generation_prompts"]),
        case_id=record["case_id"],
        relation=rewrite.get("relation_id", ""),
    )


def _known_fact(record: Mapping[str, Any]) -> Fact:
    return Fact.from_text(record["prompt"], record["subject"], record["attribute"])
