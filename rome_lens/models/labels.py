"""Tokens as readable text, even where a token holds only some of a character's bytes."""

import re
from collections.abc import Sequence
from typing import Any

from rome_lens.models.kinds import Model

_LOST = "\ufffd"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_MOST_PARTS = 8


def token_text(model: Model, token: int) -> str:
    r"""One token's text, with its leading space; bytes that are not a whole character appear as \xe6\x97."""
    return token_texts(model, [token])[0]


def token_texts(model: Model, tokens: Sequence[int]) -> list[str]:
    r"""A label for each token of a text, with its leading space.

    Tokens that share a character are labelled with it and numbered: 東(1/2), 東(2/2). Bytes that never make a character
    appear as \xe6\x97.
    """
    pieces = [_decoded(model.tokenizer, token) for token in tokens]
    labels: list[str] = []
    while (i := len(labels)) < len(pieces):
        piece = pieces[i]
        labels += [piece] if isinstance(piece, str) else _joined(pieces[i : i + _MOST_PARTS])
    return labels


def _joined(pieces: Sequence[str | bytes]) -> list[str]:
    """Labels for the first pieces that together make whole characters; for the first piece alone if none do."""
    read = b""
    for count, piece in enumerate(pieces, start=1):
        if isinstance(piece, str):
            break
        read += piece
        try:
            text = read.decode()
        except UnicodeDecodeError:
            continue
        return [text] if count == 1 else [f"{text}({i}/{count})" for i in range(1, count + 1)]
    return [bytes(pieces[0]).decode(errors="backslashreplace")]  # type: ignore[arg-type]


def _decoded(tokenizer: Any, token: int) -> str | bytes:
    """The token's text, or its bytes if they are not whole characters."""
    text, piece = tokenizer.decode([token]), tokenizer.convert_ids_to_tokens(token)
    if _LOST not in text:
        dropped = piece is not None and piece.startswith("▁") and not text.startswith(" ")  # by SentencePiece's decoder
        return f" {text}" if dropped else text
    if byte := _BYTE.fullmatch(piece):
        return bytes.fromhex(byte[1])
    alphabet = _byte_alphabet()
    return bytes(alphabet[c] for c in piece) if set(piece) <= set(alphabet) else piece


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE (GPT-2) writes for each byte: itself if it prints, else one from U+0100."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
