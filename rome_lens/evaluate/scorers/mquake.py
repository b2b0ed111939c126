"""MQuAKE: do answers over several hops follow the edits? (Zhong et al. 2023, arXiv 2305.14795)."""

from collections.abc import Sequence
from statistics import fmean

from rome_lens.checking import checked
from rome_lens.data.cases import MultiHopRecord
from rome_lens.data.records import Question
from rome_lens.evaluate.answers import Answer, generate_answers
from rome_lens.evaluate.judges import Judge, exact_match, verdict
from rome_lens.models import Model


@checked
def score_mquake(
    model: Model, record: MultiHopRecord, *, judge: Judge = exact_match, new_tokens: int = 50
) -> dict[str, float]:
    """The scores of a case of MQuAKE on the model as it is, all of what the model writes by itself (0 or 1).

    - multi_hop: 1 if any of the case's questions is answered with the new answer or an alias.
    - unchanged: 1 if any of them is answered with the answer before the edits.
    - edit_wise: share of the edits whose prompt is continued with the target.
    - instance_wise: 1 if all single hops of the new path are answered, as clozes.

    For batches of k cases, edit with all their requests and score inside `edit.applied(model)`.

    Args:
        judge: Of what is written; the authors compare by exact match. `contains_answer` is milder.
        new_tokens: The most tokens of an answer; it ends at a full stop or a line break as well.
    """
    edits = [Question(each.text, each.target, space=each.space) for each in record.requests]
    asked = [*record.questions, *edits, *record.hops]
    written = iter(generate_answers(model, [question.prompt for question in asked], new_tokens=new_tokens))

    def right(questions: Sequence[Question], answers: Sequence[Answer]) -> list[float]:
        pairs = zip(questions, answers, strict=True)
        return [verdict(judge, q.prompt, (q.text, *q.aliases), answer.text) for q, answer in pairs]

    replies = [next(written) for _ in record.questions]
    scores = {"multi_hop": max(right(record.questions, replies))}
    pairs = list(zip(record.questions, replies, strict=True))
    if before := [verdict(judge, q.prompt, (q.instead,), answer.text) for q, answer in pairs if q.instead]:
        scores["unchanged"] = max(before)
    scores["edit_wise"] = fmean(right(edits, [next(written) for _ in edits]))
    if record.hops:
        scores["instance_wise"] = min(right(record.hops, [next(written) for _ in record.hops]))
    return {name: float(value) for name, value in scores.items()}
