"""The scores of an edit on KnowEdit (Zhang et al. 2024, arXiv 2401.01286)."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from rome_lens.checking import check_seed, checked
from rome_lens.data.records import Continuation, QuestionRecord
from rome_lens.errors import DataWarning, warn
from rome_lens.evaluate.likelihood import (
    Prediction,
    locality_predictions,
    predict_kinds,
    predict_tokens,
    with_means,
)
from rome_lens.evaluate.scorers.generation import generate_texts, ngram_entropy
from rome_lens.models import Model


@checked
def score_knowedit(
    model: Model,
    record: QuestionRecord,
    *,
    before: Mapping[str, Sequence[Prediction]] | None = None,
    fluency: bool = True,
    seed: int = 0,
) -> dict[str, float]:
    """The scores of a KnowEdit record on the model as it is (all but fluency from 0 to 1).

    - edit_success: how many of the target's tokens the model predicts after the prompt, by teacher forcing.
    - portability_KIND: the same for the answers of the portability questions of each kind, averaged over the kind's
      questions; portability: the mean over the record's kinds.
    - locality_KIND: at how many tokens of the true answers the model predicts what it did before the edit, right or
      wrong, averaged over the kind's questions; locality: the mean over the record's kinds. Without `before`
      they are left out, with a DataWarning.
    - fluency: `ngram_entropy`, in bits, of one text of 100 tokens that the model writes after the prompt
      (`generate_texts`); tables show 100 times this.

    The paper writes edit success and portability as the most probable answer's being right; EasyEdit's code averages
    over tokens (easyeditor/evaluate/evaluate.py and evaluate_utils.py, test_prediction_acc; the means over kinds are in
    examples/run_knowedit_llama2.py), and so do we. A score whose questions the record lacks is left out.

    Args:
        model: is run, not changed; torch's random state is left as it is.
        record: from `load_knowedit`.
        before: `locality_predictions` of the model before the edit.
        fluency: whether to write the text, which takes longer than all the rest.
        seed: of its sampling.

    Raises:
        ValueError: a question with its answer is longer than the model's context; and as `generate_texts`.
    """
    check_seed(seed)
    request = record.request
    (success,) = predict_tokens(model, [Continuation(request.text, request.target, space=request.space)])
    scores = {"edit_success": success.accuracy}
    for kind, found in predict_kinds(model, record.portability).items():
        scores[f"portability_{kind}"] = fmean(each.accuracy for each in found)
    if before is not None:
        for kind, found in locality_predictions(model, record).items():
            agreeing = [new.agreement(old) for new, old in zip(found, before[kind], strict=True)]
            scores[f"locality_{kind}"] = fmean(agreeing)
    elif record.locality:
        warn(
            "The record has locality questions, which need before=locality_predictions(model, record) of the model "
            "before the edit: they are not scored. score_edits takes before=locality_predictions.",
            DataWarning,
        )
    scores = with_means(scores)
    if fluency:
        scores["fluency"] = ngram_entropy(generate_texts(model, [request.text], seed=seed)[0])
    return scores
