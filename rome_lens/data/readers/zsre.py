"""zsRE, as used in the evaluations of MEND and ROME (paper section 3.3)."""

import os
import reprlib
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from rome_lens.checking import checked
from rome_lens.data.readers.reading import file, first_answer, parse_records, text_field
from rome_lens.data.records import Continuation, EditRequest, QuestionRecord, template_about


@checked
def load_zsre(
    path: str | os.PathLike[str] | None = None,
    *,
    target: Literal["answers", "alt"] = "answers",
    strict: bool = True,
    refresh: bool = False,
) -> list[QuestionRecord]:
    """Reads zsRE as used in the evaluations of MEND and ROME (paper section 3.3; `zsre_mend_eval.json`, kmeng01/rome).

    The prompt is a record's `src`, with {} for the subject's first occurrence (the released code replaces each). The
    paraphrase is `rephrase`; the locality question, of the kind "nq", is `loc` with a question mark, answered by
    `loc_ans` (dsets/zsre.py). A record's case_id is its index in the file. The other arguments and the errors are those
    of `load_counterfact`.

    Args:
        target: The fact to write: the first of `answers`, as in ROME's evaluation; or `alt`, a model's wrong answer, as
            in MEND's training.
    """
    read = partial(zsre_record, target=target)
    return parse_records(file(path, "zsre_mend_eval", refresh), read, strict)


def zsre_record(record: Mapping[str, Any], index: int, *, target: str) -> QuestionRecord:
    """A record of zsRE's schema; `target` is the field of what is to be written."""
    subject = text_field(record["subject"], "subject")
    written = first_answer(record[target], target)
    if written is None:
        raise ValueError(f"It has no {target}.")
    return QuestionRecord(
        request=EditRequest(template_about(subject, text_field(record["src"], "src")), subject, written),
        paraphrase_prompts=(text_field(record["rephrase"], "paraphrase"),)
        if record.get("rephrase") is not None
        else (),
        locality=nq_question(record),
        case_id=index,
    )


def nq_question(record: Mapping[str, Any]) -> dict[str, tuple[Continuation, ...]]:
    """The locality question, if the record has one."""
    if record.get("loc") is None and record.get("loc_ans") is None:
        return {}
    answer = first_answer(record["loc_ans"], "loc_ans")
    if answer is None:
        raise ValueError(f"The locality answer is empty (loc_ans: {reprlib.repr(record['loc_ans'])}).")
    return {"nq": (Continuation(text_field(record["loc"], "locality question") + "?", answer),)}
