"""Contexts: random prefixes x_j of the prompt, over which k* and v* are averaged (paper section 3.1)."""

from collections.abc import Sequence
from typing import Literal, get_args

from rome_lens.checking import check_seed, checked
from rome_lens.data.records import PLACE, EditRequest, check_template, fill
from rome_lens.models import Model, check_model, check_top_k, sample_texts
from rome_lens.models.tokens import TokenizedText, continued, tokenize_continuation

EditedToken = Literal["subject_end", "subject_first", "subject_last", "subject_first_after_last", "last"]
"""The token of the prompt that k* and v* belong to, named as in the authors' code (fact_token), but for "subject_end":
the subject's last token or, where that is the first token of the whole text, the token after it. The first token is an
attention sink: its key is the same in nearly all texts, and later tokens hardly read what is added there.
"""


def check_token(token: str) -> None:
    """Raises ValueError unless this is an EditedToken."""
    if token not in get_args(EditedToken):
        raise ValueError(f"token is {token!r}, expected one of {', '.join(get_args(EditedToken))}.")


def check_contexts(contexts: Sequence[str]) -> None:
    """Raises ValueError unless these are context templates, the bare "{}" first."""
    if not contexts or contexts[0] != PLACE:
        raise ValueError(
            f"The contexts {list(contexts)[:3]!r}... do not begin with '{{}}', the prompt alone. Put it first."
        )
    for context in contexts:
        check_template(context, "context")


def check_lengths(name: str, lengths: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError unless these are (tokens, number of contexts) pairs."""
    if any(tokens < 1 or count < 0 for tokens, count in lengths):
        raise ValueError(f"{name} is {list(lengths)}, expected pairs (at least 1 token, number of contexts).")


@checked
def sample_contexts(
    model: Model, lengths: Sequence[tuple[int, int]] = ((10, 5),), *, seed: int = 0, top_k: int = 5
) -> tuple[str, ...]:
    """Context templates: the bare "{}", and texts sampled from the model, each followed by ". {}".

    Args:
        model: Model that writes the texts; it and torch's random state are left unchanged.
        lengths: (tokens, number of contexts) pairs, one for each length; see RomeConfig.
        seed: Seed of the sampling.
        top_k: Sample from the `top_k` most probable tokens; 5 as in the authors' code.

    Raises:
        ValueError: a length or `top_k` is below 1, or `top_k` exceeds the vocabulary.
    """
    check_model(model)
    check_lengths("lengths", lengths)
    check_seed(seed)
    check_top_k(model, top_k)
    contexts = [PLACE]
    for i, (new_tokens, count) in enumerate(lengths):
        for text in sample_texts(model, count, new_tokens=new_tokens, seed=seed + i, top_k=top_k):
            contexts.append(text.replace("{", "").replace("}", "") + ". " + PLACE)
    return tuple(contexts)


def in_context(
    model: Model, request: EditRequest, context: str, *, token: EditedToken = "subject_end"
) -> tuple[TokenizedText, int, int]:
    """Context, prompt and target as tokens, the position of the edited token, and the target's first position."""
    template = fill(context, request.prompt)
    # The separator before the target must not depend on quotation marks that a context leaves open.
    following = continued(model, request.text, request.target, space=request.space)[len(request.text) :]
    text, end = tokenize_continuation(model, fill(template, request.subject), following, space=False)
    start = template.index(PLACE)
    subject = text.covering(start, start + len(request.subject))
    positions = {
        "subject_end": min(max(subject[-1], 1), end - 1),
        "subject_first": subject[0],
        "subject_last": subject[-1],
        "subject_first_after_last": subject[-1] + 1,
    }
    position = positions.get(token, end - 1)
    if position >= end:
        raise ValueError(
            f"The prompt {request.text!r} has no token after its subject {request.subject!r}. Edit another token, such "
            "as token='subject_last'."
        )
    return text, position, end
