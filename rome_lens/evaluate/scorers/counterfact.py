"""The paper's scores of an edit on CounterFact-style records (paper section 3.4, Table 4)."""

from collections.abc import Mapping, Sequence

from rome_lens.checking import checked
from rome_lens.data.records import Continuation, EditRecord
from rome_lens.evaluate.likelihood import mean_log_probabilities
from rome_lens.models import Model


@checked
def score_record(model: Model, record: EditRecord) -> dict[str, float]:
    """The scores of a record on the model as it is.

    With p the geometric mean of a target's token probabilities after a prompt, and a record's prompts averaged:

    - ES, PS (efficacy and paraphrase success): share of prompts with p(new) > p(true), on the request's own prompt and
      on its paraphrases; EM, PM: p(new) - p(true).
    - NS, NM (neighbourhood): the same with new and true exchanged, on the neighbourhood prompts.

    A metric whose prompts the record lacks is left out. A tie is no success. Definitions: paper section 3.4;
    experiments/py/eval_utils_counterfact.py and experiments/summarize.py of kmeng01/rome, which also compare the mean
    over a target's tokens.
    """
    request = record.request
    favoured = {
        "E": (request.target, record.target_true, [request.text]),
        "P": (request.target, record.target_true, record.paraphrase_prompts),
        "N": (record.target_true, request.target, record.neighborhood_prompts),
    }
    found = compare_targets(model, favoured, space=request.space)
    return {f"{group}{name}": value for group, pair in found.items() for name, value in zip("SM", pair, strict=True)}


def compare_targets(
    model: Model, groups: Mapping[str, tuple[str, str, Sequence[str]]], *, space: bool | None = None
) -> dict[str, tuple[float, float]]:
    """For each group (favoured target, other target, prompts): how often and by how much the first is more probable.

    With p the geometric mean of a target's token probabilities after a prompt: the share of prompts with
    p(favoured) > p(other), and the mean of p(favoured) - p(other). A group without prompts is left out. `space` is that
    of `Continuation`.
    """
    asked = [
        Continuation(prompt, target, space=space)
        for *targets, prompts in groups.values()
        for prompt in prompts
        for target in targets
    ]
    p = mean_log_probabilities(model, asked).double().exp().view(-1, 2)
    gains = (p[:, 0] - p[:, 1]).split([len(prompts) for _, _, prompts in groups.values()])
    return {
        group: ((gain > 0).double().mean().item(), gain.mean().item())
        for group, gain in zip(groups, gains, strict=True)
        if len(gain)
    }
