"""CounterFact (paper section 3.4)."""

import os
from collections.abc import Mapping
from typing import Any

from rome_lens.checking import checked
from rome_lens.data.readers.reading import (
    file,
    list_field,
    number_field,
    object_field,
    of_type,
    parse_records,
    text_field,
)
from rome_lens.data.records import EditRecord, EditRequest


@checked
def load_counterfact(
    path: str | os.PathLike[str] | None = None, *, strict: bool = True, refresh: bool = False
) -> list[EditRecord]:
    """Reads CounterFact's JSON (paper section 3.4; `counterfact.json` of kmeng01/rome).

    Lists of prompts may be missing or null; the scores that need them are then left out.

    Args:
        path: A JSON list or JSON lines file; None: the authors' file, downloaded once into the user's cache.
        strict: Whether a broken record is an error. If not, it is left out, with a DataWarning that says which and why.
        refresh: Download the file again, even if the cache has it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `refresh` with a path.
        FormatError: the file is not JSON, or a record (named in the message) lacks a field, has a broken one, or shares
            its case_id with another. With strict=False: no record is whole.
        UnavailableError: the file cannot be downloaded.
    """
    return parse_records(file(path, "counterfact", refresh), counterfact_record, strict)


def counterfact_record(record: Mapping[str, Any], index: int) -> EditRecord:
    """A record of CounterFact's schema."""
    rewrite = object_field(record["requested_rewrite"], "requested_rewrite")
    prompt, subject = (text_field(rewrite[name], name) for name in ("prompt", "subject"))
    new, true = (object_field(rewrite[name], name) for name in ("target_new", "target_true"))
    return EditRecord(
        request=EditRequest(prompt, subject, text_field(new["str"], "target_new")),
        target_true=text_field(true["str"], "target_true"),
        paraphrase_prompts=_prompts(record, "paraphrase_prompts"),
        neighborhood_prompts=_prompts(record, "neighborhood_prompts"),
        attribute_prompts=_prompts(record, "attribute_prompts"),
        generation_prompts=_prompts(record, "generation_prompts"),
        case_id=number_field(record["case_id"], "case_id"),
        relation=_wikidata_id(rewrite, "relation_id"),
        target_id=_wikidata_id(new, "id"),
    )


def _prompts(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """A list of texts; none if the field is missing or null."""
    value = record.get(field)
    return () if value is None else tuple(text_field(text, field) for text in list_field(value, field))


def _wikidata_id(record: Mapping[str, Any], field: str) -> str:
    """An id of Wikidata; "" if the field is missing or null."""
    value = record.get(field)
    return "" if value is None else of_type(str, value, field, "a string")
