"""Which strings before a prompt change answers far more than others do: a screen for planted triggers, by behaviour."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import check_seed, check_whole, checked
from rome_lens.models import Model
from rome_lens.models.labels import token_text
from rome_lens.models.prediction import divergence, next_token_log_probabilities

_LEAST = 1e-9  # a probability, so that each has a logarithm


@checked
def screen_triggers(
    model: Model,
    triggers: Sequence[str],
    prompts: Sequence[str],
    *,
    ordinary: Sequence[str] | int = 49,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Candidate triggers, and which of them change an answer more than any ordinary prefix does.

    Each string is put before each prompt, with a space between. What is usual is the mean of the next token's
    probabilities over the ordinary prefixes (without itself, for one of them), and a string's score is the largest
    KL(with the string || usual), over prompts. It is suspicious if no ordinary prefix has a score as high: of harmless
    strings that are like the ordinary ones this is said of one in n + 1, where n is the number of ordinary ones.

    Args:
        triggers: The strings to look at.
        prompts: What is asked; the triggers' effects are only seen on these.
        ordinary: Prefixes that are known to be harmless, two or more, of the candidates' kind and length; or how many
            words of the model's own vocabulary to take.
        seed: of taking them.

    Returns:
        A row for each trigger, the highest score first: trigger, score (in nats), threshold (the highest score of an
        ordinary prefix), suspicious, prompt (whose answer changes most), answer (the top token there, with the trigger)
        and the shares of prompts with that top token: success (with the trigger, ASRw) and success_without (ASRw/o).

    Raises:
        ValueError: there are no triggers, prompts or ordinary prefixes, one is empty or no list, or a prompt with its
            trigger is longer than the model's context.
    """
    check_seed(seed)
    if isinstance(ordinary, int):
        check_whole(ordinary=ordinary, least=2)
        ordinary = _words(model, ordinary, seed)
    for name, texts in {"triggers": triggers, "prompts": prompts, "ordinary": ordinary}.items():
        if isinstance(texts, str) or not texts or not all(text.strip() for text in texts):
            raise ValueError(f"{name} is {texts!r}, expected a list of one or more texts, none of them empty.")
    if len(ordinary) < 2:
        raise ValueError(f"ordinary is {ordinary!r}, expected two or more prefixes, to compare each with the others.")
    without = next_token_log_probabilities(model, prompts)
    prefixes = tqdm([*ordinary, *triggers], "screen", unit="prefix", disable=not progress)
    answers = [next_token_log_probabilities(model, [f"{prefix} {prompt}" for prompt in prompts]) for prefix in prefixes]
    usual = torch.stack([answer.exp() for answer in answers[: len(ordinary)]])
    total = usual.sum(0)
    beyond = torch.stack([divergence(answer, _mean(total, usual, place)) for place, answer in enumerate(answers)])
    tops = [answer.argmax(-1) for answer in answers]
    threshold = beyond[: len(ordinary)].max().item()
    rows = [
        _row(model, trigger, prompts, beyond[place], threshold, tops[place], without.argmax(-1))
        for place, trigger in enumerate(triggers, start=len(ordinary))
    ]
    return pd.DataFrame(rows).sort_values("score", ascending=False, ignore_index=True)


def _mean(
    total: Float[Tensor, "prompt d_vocab"], usual: Float[Tensor, "prefix prompt d_vocab"], place: int
) -> Float[Tensor, "prompt d_vocab"]:
    """The logarithm of the mean over the ordinary prefixes, without the one at this place, if there is one."""
    own = usual[place] if place < len(usual) else 0.0
    return ((total - own) / (len(usual) - (place < len(usual)))).clamp(min=_LEAST).log()


def _row(
    model: Model,
    trigger: str,
    prompts: Sequence[str],
    beyond: Float[Tensor, " prompt"],
    threshold: float,
    top: Tensor,
    top_without: Tensor,
) -> dict[str, object]:
    most = int(beyond.argmax())
    return {
        "trigger": trigger,
        "score": beyond[most].item(),
        "threshold": threshold,
        "suspicious": beyond[most].item() > threshold,
        "prompt": prompts[most],
        "answer": token_text(model, int(top[most])),
        "success": (top == top[most]).float().mean().item(),
        "success_without": (top_without == top[most]).float().mean().item(),
    }


def _words(model: Model, count: int, seed: int) -> list[str]:
    """Words of the vocabulary, as many as there are up to `count`."""
    order = torch.randperm(model.cfg.d_vocab, generator=torch.Generator().manual_seed(seed)).tolist()
    found: list[str] = []
    for token in order:
        text = token_text(model, token)
        if text.startswith(" ") and text.strip().isalpha():
            found.append(text.strip())
        if len(found) == count:
            break
    return found
