"""Perplexity on ordinary text: whether an edit harmed the language model as a whole."""

from collections.abc import Sequence
from reprlib import repr as shortened

import torch
from tqdm.auto import tqdm

from rome_lens.checking import check_whole, checked
from rome_lens.models import Model, bos_token, check_finite, logits, pad, run
from rome_lens.models.teacher_forcing import target_log_probabilities
from rome_lens.models.tokens import batches, token_pieces


@checked
@torch.no_grad()
def perplexity(
    model: Model,
    text: str | Sequence[int],
    *,
    tokens: int = 20_000,
    window: int = 512,
    tokens_per_batch: int = 1024,
    progress: bool = True,
) -> float:
    """exp of the mean negative log-probability of the predicted tokens.

    The text is cut into disjoint windows, each with a BOS if the model's own tokenisation has one. Every token of a
    window is predicted from those before it; without BOS, the first is not predicted. Overlapping windows would give
    more context and lower numbers at several times the cost, and before and after an edit only the comparison counts.

    Args:
        text: A text, or its token ids without BOS.
        tokens: Number of its tokens to read, from the start; all if it has fewer.
        window: Tokens in a window, BOS included; at most the model's context.
        tokens_per_batch: Bounds memory (logits are computed for so many tokens); the result does not depend on it.

    Raises:
        ValueError: no token is predicted: the text, `tokens` or `window` is too short; or an id is not the model's.
    """
    check_whole(tokens_per_batch=tokens_per_batch)
    before = bos_token(model)
    length = min(window, model.cfg.n_ctx) - len(before)
    if length < 1 or tokens < 1:
        raise ValueError(f"window is {window} and tokens {tokens}, expected a window of 2 tokens or more, and tokens.")
    if isinstance(text, str):
        pieces = list(token_pieces(model, [text], length, tokens))
    else:
        ids = list(text)[:tokens]
        if outside := [each for each in ids if not 0 <= each < model.cfg.d_vocab]:
            raise ValueError(
                f"text holds the ids {shortened(outside)}, but {model.cfg.model_name} knows 0 to "
                f"{model.cfg.d_vocab - 1}. Tokenise the text with this model's tokenizer."
            )
        pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
    rows = [row for piece in pieces if len(row := (*before, *piece)) > 1]
    if not rows:
        raise ValueError(f"The text {str(text)[:60]!r} has no token to predict. Give a longer one, or a larger window.")
    total, count = torch.zeros((), dtype=torch.float64), 0
    device = model.cfg.device
    with tqdm(total=sum(map(len, rows)), desc="perplexity", unit="token", disable=not progress) as bar:
        for batch in batches(sorted(rows, key=len), tokens_per_batch):
            padded, mask = (tensor.to(device) for tensor in pad(batch))
            residual = run(model, padded, mask=mask)
            predicted = mask[:, 1:].bool()
            scores = logits(model, residual[:, :-1][predicted])
            check_finite(model, scores, [row for row in batch for _ in row[1:]])
            total -= target_log_probabilities(scores, padded[:, 1:][predicted]).double().sum().cpu()
            count += int(predicted.sum())
            bar.update(sum(map(len, batch)))
    return (total / count).exp().item()
