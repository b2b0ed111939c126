"""Tokens as text that can be read, also where a token holds only some of a character's bytes."""

import re
from collections.abc import Sequence
from typing import Any

from rome_lens.models.kinds import Model

_LOST = "\ufffd"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_MOST_PARTS = 8


def token_text(model: Model, token: int) -> str:
    r"""A token by itself, with its leading space; bytes that are no whole character as \xe6\x97."""
    return token_texts(model, [token])[0]


def token_texts(model: Model, tokens: Sequence[int]) -> list[str]:
    r"""A text's tokens, one label each, with their leading spaces.

    Tokens that are whole characters only together are labelled with these and their number: 東(1/2), 東(2/2). Bytes
    that never become a character are written as \xe6\x97.
    """
    pieces = [_decoded(model.tokenizer, token) for token in tokens]
    labels: list[str] = []
    while (i := len(labels)) < len(pieces):
        piece = pieces[i]
        labels += [piece] if isinstance(piece, str) else _joined(pieces[i : i + _MOST_PARTS])
    return labels


def _joined(pieces: Sequence[str | bytes]) -> list[str]:
    """The labels of as many pieces from the first on as make whole characters; of the first one if none do."""
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
    """The token's text, or its bytes if they are no text."""
    text, piece = tokenizer.decode([token]), tokenizer.convert_ids_to_tokens(token)
    if _LOST not in text:
        dropped = piece is not None and piece.startswith("▁") and not text.startswith(" ")  # as SentencePiece decodes
        return f" {text}" if dropped else text
    if byte := _BYTE.fullmatch(piece):
        return bytes.fromhex(byte[1])
    alphabet = _byte_alphabet()
    return bytes(alphabet[c] for c in piece) if set(piece) <= set(alphabet) else piece


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes (GPT-2): themselves if they print, else those from 256 on."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
