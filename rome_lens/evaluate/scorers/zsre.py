"""The scores of an edit on zsRE (paper section 3.3, Table 1)."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from rome_lens.checking import checked
from rome_lens.data.records import Continuation, QuestionRecord
from rome_lens.evaluate.likelihood import Prediction, predict_kinds
from rome_lens.models import Model


@checked
def score_zsre(
    model: Model,
    record: QuestionRecord,
    *,
    before: Mapping[str, Sequence[Prediction]] | None = None,
) -> dict[str, float]:
    """The scores of a zsRE record on the model as it is, from 0 to 1 (Table 1 shows per cent).

    - efficacy, paraphrase: how many of the target's tokens the model predicts after the question, and after its
      paraphrases.
    - specificity: the same for the true answer of the unrelated questions. This is the paper's and the released code's
      definition, so the model before the edit has less than 1.
    - unchanged: at how many of those answers' tokens the model predicts what it did before the edit, right or wrong:
      the locality of later work (EasyEdit). Left out without `before`.

    Each token of an answer is predicted from the question and the answer's tokens before it (teacher forcing); the
    answer follows the question after one space; a question's tokens are averaged, then a record's questions. The paper
    (section 3.3) writes the accuracy as that of the one most probable object; token by token is what the released code
    does (experiments/py/eval_utils_zsre.py and dsets/zsre.py of kmeng01/rome), and so do we. It tokenises an answer by
    itself, which with a tokenizer that adds BOS compares with BOS; we tokenise question and answer together.

    Args:
        record: from `load_zsre`.
        before: `locality_predictions` of the model before the edit.
    """
    request = record.request
    prompts = (request.text, *record.paraphrase_prompts)
    asked = [Continuation(prompt, request.target, space=request.space) for prompt in prompts]
    found = predict_kinds(
        model,
        {
            "efficacy": asked[:1],
            "paraphrase": asked[1:],
            "specificity": tuple(question for questions in record.locality.values() for question in questions),
        },
    )
    scores = {name: fmean(each.accuracy for each in those) for name, those in found.items() if those}
    if before is not None and found["specificity"]:
        past = [prediction for those in before.values() for prediction in those]
        pairs = zip(found["specificity"], past, strict=True)
        scores["unchanged"] = fmean(now.agreement(then) for now, then in pairs)
    return scores
