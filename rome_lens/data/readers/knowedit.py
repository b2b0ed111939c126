"""KnowEdit (Zhang et al. 2024, arXiv 2401.01286)."""

import os

from rome_lens.checking import checked
from rome_lens.data.readers.plain import plain_record
from rome_lens.data.readers.reading import file, parse_records
from rome_lens.data.records import QuestionRecord

_KNOWEDIT = ("wiki_recent", "wiki_counterfact")


@checked
def load_knowedit(path: str | os.PathLike[str], *, strict: bool = True, refresh: bool = False) -> list[QuestionRecord]:
    """Reads KnowEdit's WikiData_recent or WikiData_counterfact (Zhang et al. 2024, arXiv 2401.01286).

    The kinds of portability and locality are the file's own (Subject_Aliasing, Reasoning, Logical_Generalization;
    Relation_Specificity, Forgetfulness). A question's answer is the first alias of its first answer, as in EasyEdit's
    examples/run_knowedit_llama2.py; a question without one is left out. A record's case_id is its index in the file.

    Args:
        path: A file; or "wiki_recent" or "wiki_counterfact", whose test sets are downloaded once into the user's cache.
        strict: As in `load_counterfact`, whose errors are raised here too.
        refresh: As in `load_counterfact`.
    """
    known = path in _KNOWEDIT
    return parse_records(file(None if known else path, str(path), refresh), plain_record, strict)
