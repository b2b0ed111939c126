"""What is read: facts, requests and records, the readers of published data sets, and downloads."""

from rome_lens.data.cases import MultiHopRecord, RippleQuery, RippleRecord, RippleTest
from rome_lens.data.prompts import in_chat
from rome_lens.data.readers.builtin import load_builtin_records
from rome_lens.data.readers.counterfact import load_counterfact
from rome_lens.data.readers.knowedit import load_knowedit
from rome_lens.data.readers.known_facts import load_known_facts
from rome_lens.data.readers.question_bank import load_question_bank
from rome_lens.data.readers.recognising import load_records, schema_of
from rome_lens.data.readers.snippets import AttributeSnippets, load_attribute_snippets
from rome_lens.data.readers.subjects import load_subjects
from rome_lens.data.readers.zsre import load_zsre
from rome_lens.data.records import Continuation, EditRecord, EditRequest, Fact, Question, QuestionRecord

__all__ = [
    "AttributeSnippets",
    "Continuation",
    "EditRecord",
    "EditRequest",
    "Fact",
    "MultiHopRecord",
    "Question",
    "QuestionRecord",
    "RippleQuery",
    "RippleRecord",
    "RippleTest",
    "in_chat",
    "load_attribute_snippets",
    "load_builtin_records",
    "load_counterfact",
    "load_knowedit",
    "load_known_facts",
    "load_question_bank",
    "load_records",
    "load_subjects",
    "load_zsre",
    "schema_of",
]
