"""One reader for all published data sets of edits: it recognises the schema by the fields of the records."""

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from reprlib import repr as shortened
from typing import Any, TypeAlias

from rome_lens.checking import checked
from rome_lens.data.cases import MultiHopRecord, RippleRecord
from rome_lens.data.readers import evoke, qa
from rome_lens.data.readers.behaviour import convsent_record, sanitation_record, sanitation_rows
from rome_lens.data.readers.counterfact import counterfact_record
from rome_lens.data.readers.halluedit import halluedit_record
from rome_lens.data.readers.long_answers import long_answer_record
from rome_lens.data.readers.mquake import mquake_record
from rome_lens.data.readers.mrlf import mrlf_record
from rome_lens.data.readers.plain import plain_name, plain_record
from rome_lens.data.readers.reading import PUBLISHED_UNUSED, parse_list
from rome_lens.data.readers.ripple import ripple_record
from rome_lens.data.readers.zsre import zsre_record
from rome_lens.data.records import EditRecord, QuestionRecord
from rome_lens.data.tables import raw_records
from rome_lens.errors import FormatError

AnyRecord: TypeAlias = EditRecord | QuestionRecord | MultiHopRecord | RippleRecord
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schema:
    """A published schema.

    Attributes:
        name: What it is called.
        fields: What its records have, and records of the schemas further down the list may lack.
        read: Makes a record; or a text that says why none can be made, and what to do.
        rows: Makes a list of what the file holds, where it is none.
    """

    name: str
    fields: frozenset[str]
    read: Callable[[Mapping[str, Any], int], AnyRecord] | str
    rows: Callable[[Any], list[Any]] | None = None

    @classmethod
    def of(
        cls,
        name: str,
        fields: str,
        read: Callable[[Mapping[str, Any], int], AnyRecord] | str,
        rows: Callable[[Any], list[Any]] | None = None,
    ) -> "Schema":
        return cls(name, frozenset(fields.split()), read, rows)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a record has the schema's fields, those of the plain one by any of their names."""
        names = map(plain_name, row) if self is PLAIN else row
        return self.fields <= set(names)


PLAIN = Schema.of("plain", "prompt subject target_new", plain_record)


SCHEMAS = (
    Schema.of("EVOKE", "requested_rewrite prefix_distraction", evoke.evoke_record),
    Schema.of("EVOKE, subject specificity", "requested_rewrite relation_specificity", evoke.evoke_subject_record),
    Schema.of(
        "EasyEdit's CounterFact with portability",
        "requested_rewrite distracting_neighborhood_prompts",
        evoke.counterfact_portability_record,
    ),
    Schema.of("MQuAKE", "requested_rewrite new_single_hops", mquake_record),
    Schema.of("CounterFact", "requested_rewrite", counterfact_record),
    Schema.of("counterfact-tracing", "relation_prefix relation_suffix target_false", evoke.counterfact_tracing_record),
    Schema.of("RippleEdits", "edit example_type", ripple_record),
    Schema.of("HalluEditBench", "question object multiple_choices", halluedit_record),
    Schema.of("UltraEdit's WikiBigEdit", "update ans loc loc_ans", qa.ultraedit_record),
    Schema.of("UltraEdit's zsRE", "src ans loc loc_ans", qa.ultraedit_record),
    Schema.of("UltraEditBench", "prompt ans loc loc_ans", qa.ultraedit_record),
    Schema.of("EasyEdit's zsRE with portability", "src alt portability", qa.zsre_portability_record),
    Schema.of("zsRE", "src answers", partial(zsre_record, target="answers")),
    Schema.of("QAEdit", "prompt target rephrase locality", qa.qaedit_record),
    Schema.of("EasyEdit's flat CounterFact", "prompt target_new locality_prompt", plain_record),
    Schema.of("KnowEdit", "prompt target_new subject locality", plain_record),
    Schema.of("KnowEdit's WikiBio", "text labels concept", qa.wikibio_record),
    Schema.of("KnowEdit's ConvSent", "ent pos neg", convsent_record),
    Schema.of("KnowEdit's Sanitation", "success locality", sanitation_record, rows=sanitation_rows),
    Schema.of("MRLF-Bench", "doc questions", mrlf_record),
    Schema.of("MRLF-Bench, input and target", "input target questions", mrlf_record),
    Schema.of(
        "known_1000", "known_id attribute", "It holds facts to trace. Read it with rl.data.load_known_facts(path)."
    ),
    Schema.of(
        "attribute snippets", "samples target_id", "It holds texts. Read it with rl.data.load_attribute_snippets(path)."
    ),
    Schema.of(
        "AlpacaEval", "instruction output", "It holds instructions, and nothing to edit. See rl.evaluate.Preference."
    ),
    PLAIN,
    Schema.of("UnKEBench or EditEverything", "question answer", long_answer_record),
)


@checked
def schema_of(source: Any) -> str:
    """The name of the published schema that `load_records` would recognise; arguments and errors are its own."""
    return _recognized(raw_records(source), _place(source)).name


@checked
def load_records(source: Any, *, strict: bool = True) -> list[AnyRecord]:
    """Reads a published data set of edits, whichever it is; the schema is recognised by the fields of the records.

    Which one was found is logged (logger `rome_lens`, level INFO). Known are CounterFact and what extends it (EVOKE,
    EasyEdit's portability, counterfact-tracing), zsRE as MEND, EasyEdit and UltraEdit have it, KnowEdit
    (WikiData_recent, WikiData_counterfact, ZsRE, WikiBio, ConvSent, Sanitation), QAEdit, MQuAKE (also AKEW's and
    Remastered), RippleEdits, HalluEditBench, UltraEditBench, WikiBigEdit, MRLF-Bench, UnKEBench and EditEverything; and
    plain rows of your own: prompt, subject, target, and the true answer and paraphrases if you have them. What becomes
    of the fields, and the names that plain ones go by: docs/own_data.md. A field that nothing reads, and case_ids that
    several records have, which are numbered anew, are told by a DataWarning.

    Args:
        source: A file of JSON, JSON lines or CSV; a data set of Hugging Face's `datasets`; a DataFrame; or a list of
            dicts.
        strict: Whether a broken record is an error. If not, it is left out, and a DataWarning tells which and why.

    Returns:
        EditRecords for CounterFact, MultiHopRecords for MQuAKE, RippleRecords for RippleEdits, else QuestionRecords.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: The file is damaged or of another kind, no schema fits, or a record lacks a field or has a broken
            one; the message names the schema, the record and the field.
    """
    place = _place(source)
    raw = raw_records(source)
    schema = _recognized(raw, place)
    if isinstance(schema.read, str):
        raise FormatError(f"{place} is {schema.name}. {schema.read}")
    if schema.rows is not None:
        try:
            raw = schema.rows(raw)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{place} ({schema.name}) is broken: {error}. Is it another data set?") from error
    _log.info("%s is %s: %d records", place, schema.name, len(raw))
    unused = re.compile("") if schema is PLAIN else PUBLISHED_UNUSED
    return parse_list(raw, f"{place} ({schema.name})", schema.read, strict, unused=unused)


def _place(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"the given {type(source).__name__}"


def _recognized(raw: Any, place: str) -> Schema:
    """The first schema whose fields most of the first records have."""
    rows = [raw] if isinstance(raw, Mapping) else raw
    first = [row for row in rows[:20] if isinstance(row, Mapping)] if isinstance(rows, list) else []
    for schema in SCHEMAS:
        if first and 2 * sum(map(schema.fits, first)) > len(first):
            return schema
    if not first:
        found = shortened(raw)
        raise FormatError(
            f"{place} holds no records but {found}. As source is expected a list of objects with named fields."
        )
    fields = list(first[0])
    near = max(SCHEMAS, key=lambda schema: len(schema.fields & set(fields)) / len(schema.fields))
    missing = sorted(near.fields - set(fields))
    raise FormatError(
        f"The records of {place} have the fields {fields}, which no known schema has; the nearest is {near.name}, of "
        f"which {missing} are missing. Rename the fields, or make the records in Python (docs/own_data.md)."
    )
