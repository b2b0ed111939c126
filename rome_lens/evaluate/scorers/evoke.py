"""EVOKE: does an edit say its target where it should not? (Zhang et al., ICLR 2025; Acruxos/EVOKE)."""

from dataclasses import replace
from statistics import fmean

from rome_lens.checking import checked
from rome_lens.data.records import Question, QuestionRecord
from rome_lens.evaluate.likelihood import mean_log_probabilities
from rome_lens.evaluate.protocols import record_questions
from rome_lens.models import Model

_WRITTEN = ("efficacy", "paraphrase")


@checked
def score_evoke(model: Model, record: QuestionRecord) -> dict[str, float]:
    """The scores of overfitting of an EVOKE record on the model as it is, from 0 to 1.

    With p the geometric mean of an answer's token probabilities after a question, for each kind of question (multi_hop,
    relation_specificity, prefix_distraction, subject_specificity):

    - EOS_KIND: share of the questions with p(correct answer) > p(target of the edit): 1 without overfitting.
    - AMS_KIND: share with p(correct answer) > p(answer before the edit), where the record tells one; for efficacy and
      paraphrase the correct answer is the target.
    - CAP_KIND, DP_KIND, OAP_KIND: the means of p(correct answer), p(target), and p(answer before the edit).

    A tie is no success. Definitions: the authors' README and the fields of their records.
    """
    target = record.request.target
    kinds = {
        group.split("_", 1)[1] if group not in _WRITTEN else group: [q for q in questions if q.text]
        for group, questions in record_questions(record).items()
    }
    asked = [question for questions in kinds.values() for question in questions]
    texts = [(question.text, target, question.instead or target) for question in asked]
    rows: list[Question] = [
        replace(question, text=text) for question, each in zip(asked, texts, strict=True) for text in each
    ]
    if not rows:
        return {}
    p = mean_log_probabilities(model, rows).double().exp().view(-1, 3).tolist()
    found = iter(zip(asked, p, strict=True))
    scores: dict[str, float] = {}
    for kind, questions in kinds.items():
        each = [next(found) for _ in questions]
        if not each:
            continue
        scores[f"CAP_{kind}"] = fmean(correct for _, (correct, _, _) in each)
        if kind not in _WRITTEN:
            scores[f"EOS_{kind}"] = fmean(correct > edited for _, (correct, edited, _) in each)
            scores[f"DP_{kind}"] = fmean(edited for _, (_, edited, _) in each)
        before = [values for question, values in each if question.instead not in (None, target)]
        if before:
            scores[f"AMS_{kind}"] = fmean(correct > old for correct, _, old in before)
            scores[f"OAP_{kind}"] = fmean(old for _, _, old in before)
    return scores
