"""Texts as tokens, with the characters that each token covers."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rome_lens.errors import DataWarning, warn
from rome_lens.models.kinds import Model, is_bridge
from rome_lens.models.parameters import bos_token, check_model
from rome_lens.models.spacing import separator

_BLOCK = 1 << 20  # characters tokenised at once


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

    Warns:
        DataWarning: the text begins with BOS, and gets another.
    """
    tokenized, bos = _tokenized(model, text), tuple(bos_token(model))
    if bos and tokenized.ids[:2] == bos * 2:
        warn(
            f"The prompt {text[:60]!r}... begins with {model.tokenizer.bos_token!r}, and the model puts one before "
            "it: it is read with two. Leave it out of the prompt.",
            DataWarning,
        )
    return tokenized


def spaced(prompt: str, continuation: str, *, space: bool | None = None, specials: Sequence[str] = ()) -> str:
    """The continuation with the space, if any, that belongs between it and the prompt: see `separator`."""
    return separator(prompt, continuation, space=space, specials=specials) + continuation


def continued(model: Model, prompt: str, continuation: str, *, space: bool | None = None) -> str:
    """Prompt and continuation as one text, with a space between them where one belongs: see `separator`."""
    return prompt + spaced(prompt, continuation, space=space, specials=_specials(model, prompt))


def tokenize_continuation(
    model: Model, prompt: str, continuation: str, *, space: bool | None = None
) -> tuple[TokenizedText, int]:
    """Tokenises prompt and continuation as one text; returns it and the position of the continuation's first token.

    `separator` decides on a space between them. Tokenised together they are what the model would see, with and without
    BOS, and for tokenizers that treat the start of a text in their own way. Spaces at the prompt's end belong to the
    continuation's first token, as in running text. Any other token with characters of both (Anglo, -S, axon) is split,
    because the model has read the prompt's own tokens.

    Warns:
        DataWarning: as `tokenize`.
    """
    text = tokenize(model, continued(model, prompt, continuation, space=space))
    positions = text.covering(len(prompt), len(text.text))
    if not positions or not continuation.strip():
        raise ValueError(f"{continuation!r} after {prompt!r} has no tokens. Give a target or answer that is not empty.")
    following = text.text[len(prompt) :]
    if prompt.strip() and not prompt[-1].isspace() and not following[0].isspace():
        before = _tokenized(model, prompt)
        if text.ids[: positions.start] != before.ids:
            return _fitting(model, _split(model, before, following)), len(before.ids)
    return text, positions.start


def _tokenized(model: Model, text: str) -> TokenizedText:
    ids, offsets = _encoded(model, text)
    before = bos_token(model)
    return _fitting(model, TokenizedText(text, (*before, *ids), (*(((0, 0),) * len(before)), *offsets)))


def _tokenizer(model: Model) -> Any:
    """The model's tokenizer. Raises ValueError if it has none, or one without character offsets."""
    check_model(model)
    tokenizer = model.tokenizer
    way = "model.tokenizer = ..." if is_bridge(model) else "model.set_tokenizer(...)"
    if tokenizer is None:
        raise ValueError(f"The model has no tokenizer, expected one that fits it. Set it with {way}.")
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer {type(tokenizer).__name__} does not tell which characters a token covers, expected a "
            f"'fast' one. Load it with AutoTokenizer.from_pretrained(..., use_fast=True) and set it with {way}."
        )
    return tokenizer


def _encoded(model: Model, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """The text's ids and offsets, without BOS."""
    _tokenizer(model)
    encoded = _encode(model, text, return_offsets_mapping=True)
    return tuple(encoded["input_ids"]), tuple(map(tuple, encoded["offset_mapping"]))


def _encode(model: Model, text: str, **options: bool) -> Any:
    """What the tokenizer makes of a text, without BOS. Raises ValueError for a text that is not valid Unicode."""
    check_unicode(text)
    return model.tokenizer(text, add_special_tokens=False, verbose=False, **options)


def check_unicode(text: str) -> None:
    """Raises ValueError for a text with half of a surrogate pair, which no file and no tokenizer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The text {text[:60]!r} holds {text[error.start]!r} at character {error.start}: half of a character, "
            "which is no text. Leave it out, or read the text again: open(path, encoding='utf-8')."
        ) from error


def _fitting(model: Model, text: TokenizedText) -> TokenizedText:
    """The text itself. Raises ValueError if it is longer than the model's context."""
    if len(text.ids) > model.cfg.n_ctx:
        raise ValueError(
            f"The prompt {text.text[:60]!r}... has {len(text.ids)} tokens, but {model.cfg.model_name} reads at most "
            f"{model.cfg.n_ctx}. Shorten it, or load the model with a larger context."
        )
    return text


def _split(model: Model, before: TokenizedText, following: str) -> TokenizedText:
    """The tokens of a text, followed by those of what follows it, tokenised as in the middle of a text."""
    ids, offsets = _encoded(model, f"\n{following}")  # the line break stands for the text before
    inside = [i for i, (_, end) in enumerate(offsets) if end > 1]
    shift = len(before.text) - 1
    moved = tuple((offsets[i][0] + shift, offsets[i][1] + shift) for i in inside)
    return TokenizedText(before.text + following, (*before.ids, *(ids[i] for i in inside)), before.offsets + moved)


def _specials(model: Model, prompt: str) -> list[str]:
    """The tokenizer's special tokens, if the prompt may end in one."""
    if prompt[-1:].isalnum():
        return []
    tokenizer = _tokenizer(model)
    added = tokenizer.added_tokens_decoder.values()
    return [*tokenizer.all_special_tokens, *(token.content for token in added if token.special)]


def blocks(text: io.TextIOBase) -> Iterator[str]:
    """A text in blocks of about a million characters, cut at the ends of lines, so that few tokens differ from the
    whole text's.
    """
    while block := text.read(_BLOCK):
        yield block + text.readline(_BLOCK)


def token_pieces(model: Model, texts: Iterable[str], length: int, tokens: int) -> Iterator[list[int]]:
    """The texts' tokens joined and cut into rows of `length`, `tokens` in all; the last row may be shorter.

    There is no BOS among them, and no more is read than needed: a text of more than a million characters is tokenised
    block by block.
    """
    waiting: list[int] = []
    for block in (block for text in texts for block in blocks(io.StringIO(text))):
        waiting += _encode(model, block)["input_ids"]
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
    """Batches of consecutive rows, each with at most `tokens` tokens when padded, or with one row.

    Rows have to be in ascending order of their length.
    """
    found: list[list[tuple[int, ...]]] = []
    for row in rows:
        if found and (len(found[-1]) + 1) * len(row) <= tokens:
            found[-1].append(row)
        else:
            found.append([row])
    return found
