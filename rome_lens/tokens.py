"""Texts as the model's tokens, with the characters that each token covers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rome_lens.errors import DataWarning, warn
from rome_lens.models import Model, bos_token, check_model


@dataclass(frozen=True)
class TokenizedText:
    """A text as `model.to_tokens` reads it: ids, and the [start, end) characters that each covers ((0, 0) for BOS)."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def covering(self, start: int, end: int) -> range:
        """The positions of the tokens that hold any of the characters [start, end): empty if there are none."""
        positions = [i for i, (a, b) in enumerate(self.offsets) if a < end and b > start]
        return range(positions[0], positions[-1] + 1) if positions else range(0)


def tokenize(model: Model, text: str) -> TokenizedText:
    """Tokenises by the model's own rule: BOS first if and only if `model.cfg.default_prepend_bos`.

    Raises:
        ValueError: the model has no tokenizer, or one that does not tell character offsets; the text is longer than
            the model's context.
    """
    check_model(model)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("The model has no tokenizer, expected one that fits it. Set it with model.set_tokenizer(...).")
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer {type(tokenizer).__name__} does not tell which characters a token covers, expected a "
            "'fast' one. Load it with AutoTokenizer.from_pretrained(..., use_fast=True) and use model.set_tokenizer."
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    before = bos_token(model)
    ids = (*before, *encoded["input_ids"])
    if len(ids) > model.cfg.n_ctx:
        raise ValueError(
            f"The prompt {text[:60]!r}... has {len(ids)} tokens, but {model.cfg.model_name} reads at most "
            f"{model.cfg.n_ctx}. Shorten it, or load the model with a larger context."
        )
    return TokenizedText(text, ids, ((0, 0),) * len(before) + tuple(map(tuple, encoded["offset_mapping"])))


def spaced(prompt: str, continuation: str) -> str:
    """The continuation with a space before it that separates it from the prompt, unless there is one already."""
    return continuation if prompt[-1:].isspace() or continuation[:1].isspace() else f" {continuation}"


def tokenize_continuation(model: Model, prompt: str, continuation: str) -> tuple[TokenizedText, int]:
    """Tokenises prompt and continuation as one text, and tells at which position the continuation's tokens start.

    The continuation gets a leading space (see `spaced`). Tokenising both together is what the model would see, with
    and without BOS, and for tokenizers that treat the start of a text in their own way.

    Raises:
        ValueError: the continuation has no tokens; and as `tokenize`.

    Warns:
        DataWarning: the prompt begins with BOS, and gets another.
    """
    text = tokenize(model, prompt + spaced(prompt, continuation))
    before = tuple(bos_token(model))
    if before and text.ids[:2] == before * 2:
        warn(
            f"The prompt {prompt[:60]!r}... begins with {model.tokenizer.bos_token!r}, and the model puts one before "
            "it: it is read with two. Leave it out of the prompt.",
            DataWarning,
        )
    positions = text.covering(len(prompt), len(text.text))
    if not positions or not continuation.strip():
        raise ValueError(f"{continuation!r} after {prompt!r} has no tokens. Give a target or answer that is not empty.")
    return text, positions.start


def token_pieces(model: Model, texts: Iterable[str], length: int, tokens: int) -> Iterator[list[int]]:
    """The texts' tokens strung together and cut into rows of `length`, `tokens` in all; the last may be shorter.

    No BOS is among them, and no more text is read than is needed.
    """
    waiting: list[int] = []
    for text in texts:
        waiting += model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        whole = len(waiting) - len(waiting) % length
        for start in range(0, whole, length):
            piece = waiting[start : start + min(length, tokens)]
            tokens -= len(piece)
            yield piece
            if not tokens:
                return
        waiting = waiting[whole:]
    if waiting:
        yield waiting[:tokens]


def batches(rows: Sequence[tuple[int, ...]], tokens: int) -> list[list[tuple[int, ...]]]:
    """Consecutive rows, so many that their padded batch holds at most `tokens` tokens (one row at least)."""
    found: list[list[tuple[int, ...]]] = []
    for row in rows:
        if found and (len(found[-1]) + 1) * len(row) <= tokens:
            found[-1].append(row)
        else:
            found.append([row])
    return found
