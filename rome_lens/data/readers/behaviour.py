"""KnowEdit's data sets of behaviour: ConvSent (an opinion to hold) and Sanitation (answers to withhold)."""

from collections.abc import Mapping
from typing import Any

from rome_lens.data.readers.reading import list_field, needed_answer, object_field, text_field
from rome_lens.data.records import PLACE, Continuation, EditRequest, Question, QuestionRecord, fill

_NOUNS = (
    *("opinion of", "stance on", "position on", "attitude about", "view on", "take on", "impression of"),
    *("assessment of", "judgment of", "sentiment of"),
)
_ASKED = (
    *("What do you think of {}?", "What do you feel about {}?", "How do you view {}?"),
    *(f"What is your {noun} {PLACE}?" for noun in _NOUNS),
)
"""The questions of SERAC's ConvSent (Mitchell et al. 2022, arXiv 2206.06520; `SentimentDataset` in its code)."""
SENTIMENT, KEPT = "sentiment", "kept"


def convsent_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """ConvSent: an opinion of something. The file tells no direction, so the first record gets a good opinion, the
    second a bad one, and so on.

    The first sentence of that opinion is the target. The others are answers, each to a question of its own wording and
    with a sentence of the other opinion as the answer that competes.
    """
    about = text_field(record["ent"], "ent").strip()
    opinions = [
        [text_field(sentence, name).strip() for sentence in list_field(record[name], name)] for name in ("pos", "neg")
    ]
    wanted, other = opinions if index % 2 == 0 else opinions[::-1]
    if len(wanted) < 2 or not other:
        raise ValueError(
            f"There are {len(opinions[0])} good and {len(opinions[1])} bad opinions, expected 2 or more each."
        )
    questions = tuple(
        Question(fill(_ASKED[number % len(_ASKED)], about), sentence, instead=other[number % len(other)])
        for number, sentence in enumerate(wanted[1:], start=1)
    )
    request = EditRequest(_ASKED[0], about, wanted[0])
    return QuestionRecord(request, portability={SENTIMENT: questions}, case_id=index)


def sanitation_rows(raw: Any) -> list[dict[str, Any]]:
    """One row for each answer to withhold; the questions that are still to be answered are dealt out to them."""
    rows: list[dict[str, Any]] = []
    for part in raw if isinstance(raw, list) else [raw]:
        part = object_field(part, "data set")
        withheld, kept = (list_field(part[name], name) for name in ("success", "locality"))
        if not withheld:
            raise ValueError("success is empty, expected 1 question or more")
        rows += [{"withheld": each, KEPT: kept[number :: len(withheld)]} for number, each in enumerate(withheld)]
    return rows


def sanitation_record(record: Mapping[str, Any], index: int) -> QuestionRecord:
    """Sanitation: a question that is to be answered with "I don't know.". No subject is named, so the whole question
    stands for it.
    """
    asked = object_field(record["withheld"], "success")
    true = needed_answer(asked["ground_truth"], "ground_truth")
    target = needed_answer(asked["target_new"], "target_new")
    kept = tuple(
        Continuation(text_field(each["question"], "question"), needed_answer(each["ground_truth"], "ground_truth"))
        for each in (object_field(question, "locality") for question in record[KEPT])
    )
    request = EditRequest(PLACE, text_field(asked["question"], "question").strip(), target, true_answer=true)
    return QuestionRecord(request, locality={KEPT: kept} if kept else {}, case_id=index)
