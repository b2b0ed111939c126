"""How far an edit reaches its neighbourhood: CounterFact+ and the KL divergence (Hoelscher-Obermaier et al. 2023)."""

from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import checked
from rome_lens.data.records import EditRecord
from rome_lens.evaluate.scorers.counterfact import compare_targets
from rome_lens.models import Model
from rome_lens.models.prediction import divergence, next_token_log_probabilities
from rome_lens.models.tokens import continued


@checked
def score_specificity(
    model: Model, record: EditRecord, *, before: Float[Tensor, "prompt d_vocab"] | None = None
) -> dict[str, float]:
    """The scores of CounterFact+ on a record's neighbourhood prompts, on the model as it is (arXiv 2305.17553).

    - NS+, NM+: `score_record`'s NS and NM, with the edit stated before each prompt: "The Eiffel Tower is located in
      the city of Rome. The Louvre is located in the city of". An edit that is hooked on its own words shows here.
    - NKL, NKL+: KL(before || now) of the next token's distribution, in nats, averaged over the prompts as they are,
      and with the edit before them. Left out without `before`.

    Source: experiments/py/eval_utils_counterfact.py and experiments/e2e_analyze.py of apartresearch/specificityplus.
    The divergence there runs the other way, KL(now || before), and is divided by the number of tokens in the
    vocabulary (a mean over the entries of one distribution), hence its values near 1e-5. Ours is that of
    `compare_models`, in nats: what the model said before is the reference.

    Args:
        record: without neighbourhood prompts it has no scores.
        before: `neighborhood_log_probabilities` of the model before the edit.
    """
    if not record.neighborhood_prompts:
        return {}
    favoured = (record.target_true, record.request.target, _distracting(model, record))
    success, magnitude = compare_targets(model, {"N+": favoured}, space=record.request.space)["N+"]
    scores = {"NS+": success, "NM+": magnitude}
    if before is not None:
        plain, distracting = divergence(before, neighborhood_log_probabilities(model, record)).view(2, -1).mean(-1)
        scores |= {"NKL": plain.item(), "NKL+": distracting.item()}
    return scores


@checked
def neighborhood_log_probabilities(model: Model, record: EditRecord) -> Float[Tensor, "prompt d_vocab"]:
    """The next token's log-probabilities, in nats, after a record's neighbourhood prompts, first as they are, then
    with the edit stated before them. Of the model before an edit, this is what `score_specificity` takes as `before`.
    """
    return next_token_log_probabilities(model, [*record.neighborhood_prompts, *_distracting(model, record)])


def _distracting(model: Model, record: EditRecord) -> list[str]:
    stated = continued(model, record.request.text, record.request.target, space=record.request.space)
    return [f"{stated}. {prompt}" for prompt in record.neighborhood_prompts]
