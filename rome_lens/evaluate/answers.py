"""Answers that a model writes by itself, as a user would see them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from rome_lens.checking import check_whole, checked
from rome_lens.data.records import check_prompts
from rome_lens.models import Model, pad, write_on
from rome_lens.models.tokens import tokenize

NEW_TOKENS = 50
STOPS = (".", "\n")


@checked
@dataclass(frozen=True)
class Answer:
    """What a model wrote after a prompt.

    Attributes:
        text: Up to the first stop, which is left out, without spaces at its ends.
        tokens: The ids as they were written, up to and with the one that holds the stop.
    """

    text: str
    tokens: tuple[int, ...]


@checked
def generate_answers(
    model: Model,
    prompts: Sequence[str],
    *,
    new_tokens: int = NEW_TOKENS,
    stops: Sequence[str] = STOPS,
    rows_per_batch: int = 64,
) -> list[Answer]:
    """What the model writes after each prompt, always its most probable token, until it stops.

    It stops at the first token with which the text holds one of `stops`, at a special token of the tokenizer (such as
    the end of the text), or after `new_tokens`. That is the protocol of WILD (Yang et al. 2025, arXiv 2502.11177;
    test_prediction_acc_real in WanliYoung/Revisit-Editing-Evaluation). All prompts are read and continued together,
    with their keys and values kept; a prompt that occurs twice is continued once.

    Args:
        prompts: Texts, as they are: see `in_chat` for a chat template.
        new_tokens: The most tokens that an answer has.
        stops: Texts that end an answer.
        rows_per_batch: Bounds memory; the answers do not depend on it, but for rounding.

    Raises:
        ValueError: No prompts, a blank one, or one that leaves less than `new_tokens` of the model's context; `stops`
            that are one text.
    """
    check_prompts(prompts)
    if isinstance(stops, str):
        raise ValueError(f"stops is {stops!r}, expected a list of texts: [{stops!r}].")
    check_whole(new_tokens=new_tokens, rows_per_batch=rows_per_batch)
    rows = {prompt: tokenize(model, prompt).ids for prompt in prompts}
    for prompt, row in rows.items():
        if len(row) + new_tokens > model.cfg.n_ctx:
            raise ValueError(
                f"The prompt {prompt[:60]!r}... has {len(row)} tokens, and {new_tokens} new ones are asked for, but "
                f"{model.cfg.model_name} reads at most {model.cfg.n_ctx}. Shorten it or lower new_tokens."
            )
    order = sorted(rows, key=lambda prompt: len(rows[prompt]))
    found: dict[str, Answer] = {}
    for start in range(0, len(order), rows_per_batch):
        batch = order[start : start + rows_per_batch]
        written = _written(model, [rows[prompt] for prompt in batch], new_tokens, stops)
        found |= dict(zip(batch, written, strict=True))
    return [found[prompt] for prompt in prompts]


def _written(model: Model, rows: Sequence[tuple[int, ...]], new_tokens: int, stops: Sequence[str]) -> list[Answer]:
    tokens, given = (nn.functional.pad(each, (0, new_tokens)).to(model.cfg.device) for each in pad(rows))
    answers: dict[int, Answer] = {}
    ends = set(model.tokenizer.all_special_ids)

    def all_stopped(read: Int[Tensor, "row pos"]) -> bool:
        for i, row in enumerate(rows):
            if i not in answers and read.shape[1] > len(row):
                new = read[i, len(row) :].tolist()
                text = model.tokenizer.decode(new, skip_special_tokens=True)
                before = [text.index(stop) for stop in stops if stop in text]
                if before or new[-1] in ends or len(new) == new_tokens:
                    answers[i] = Answer(text[: min(before, default=len(text))].strip(), tuple(new))
        return len(answers) == len(rows)

    write_on(model, tokens, given, chances=torch.zeros(tokens.shape, device=tokens.device), top_k=1, until=all_stopped)
    return [answers[i] for i in range(len(rows))]
