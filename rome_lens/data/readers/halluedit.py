"""HalluEditBench (llm-editing/HalluEditBench): facts that a model gets wrong, asked in many ways."""

from collections.abc import Mapping
from typing import Any

from rome_lens.data.readers.qa import paraphrases
from rome_lens.data.readers.reading import text_field
from rome_lens.data.records import EditRequest, Question, QuestionRecord, template_about

_HOPS = range(2, 7)


def halluedit_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """A row. The true answer of the request is the wrong one that the model gave (output_MODEL), if the row has it.

    Kinds of portability: choice, yes, no, reversed, and 2hop to 6hop. The locality question has no answer: only what
    the model writes before and after the edit is compared.
    """
    subject, answer = text_field(record["subject"], "subject"), text_field(record["object"], "object")
    question = text_field(record["question"], "question")
    output = next((record[name] for name in record if name.startswith("output_")), None)
    wrong = text_field(output, "output_MODEL") if output is not None and str(output).strip() else None
    choices = text_field(record["multiple_choice_with_letters"], "multiple_choice_with_letters")
    asked = {
        "choice": Question(f"{question} {choices}", text_field(record["multiple_choice_labels"], "label")),
        "yes": Question(text_field(record["yes_question"], "yes_question"), "Yes", instead="No"),
        "no": Question(text_field(record["no_question"], "no_question"), "No", instead="Yes"),
        "reversed": Question(text_field(record["reversed_relation_question"], "reversed_relation_question"), subject),
    }
    for hops in _HOPS:
        if (text := record.get(f"question_{hops}hop")) not in (None, ""):
            reply = text_field(record[f"answer_{hops}hop"], f"answer_{hops}hop")
            asked[f"{hops}hop"] = Question(text_field(text, f"question_{hops}hop"), reply)
    return QuestionRecord(
        EditRequest(template_about(subject, question), subject, answer, true_answer=wrong),
        paraphrases(record, "paraphrased_question"),
        portability={kind: (each,) for kind, each in asked.items()},
        locality={"unrelated": (Question(text_field(record["locality_question"], "locality_question"), ""),)},
        case_id=index,
    )
