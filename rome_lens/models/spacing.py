"""Whether a space stands between a prompt and the text that follows.

Nearly always it does. There is none where ordinary writing has none: within scripts without spaces, after an opening or
leading mark (bracket, quote, currency sign, hyphen), before a closing one, and after a tag as in chat templates.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence

_EAST_ASIAN = (  # Han, kana, their punctuation and fullwidth forms, as [start, end) code points
    *((0x2E80, 0x2FE0), (0x3000, 0x3130), (0x3190, 0x3200), (0x3220, 0x3260), (0x3280, 0x4DC0), (0x4E00, 0xA000)),
    *((0xF900, 0xFB00), (0xFE30, 0xFE50), (0xFF00, 0xFFA0), (0x1B000, 0x1B170), (0x20000, 0x32400)),
)
_SOUTH_EAST_ASIAN = (  # Thai, Lao, Tibetan, Burmese, Khmer, Tai and Javanese: no spaces between words
    *((0x0E00, 0x0E3F), (0x0E40, 0x10A0), (0x1780, 0x1800), (0x1950, 0x1A00), (0x1A20, 0x1AB0), (0x1B00, 0x1B80)),
    *((0xA980, 0xAA00), (0xAA60, 0xAA80)),
)
_CLOSED_BY = {
    **{'"': '"', "'": "'", "`": "`", "“": "”", "”": "”", "„": "“”", "‘": "’", "’": "’", "‚": "‘’"},
    **{"«": "»", "»": "«»", "‹": "›", "›": "‹›"},
}
_MORE_OFTEN_CLOSING = "'”’»›"
_LEADING = "/\\@#_~^§¿¡\u200b"
_PREFIXED = "$£¥"  # other currency signs may follow their number after a space
_ELISION = re.compile(r"(?<![\w'’])(?:[cdjlmnostv]|\w*qu|un|gl|\w*ll|quest|sant)['’]$", re.IGNORECASE)
_TAG = re.compile(r"<[^<>\s]+>$")
_SUFFIX = re.compile(r"[,;:!?%)\]}…°\u200b]|\.(?!\w)|['’](?:s|re|ve|ll|d|m)\b|[-‐‑](?=[^\W\d_])", re.IGNORECASE)


def separator(prompt: str, text: str, *, space: bool | None = None, specials: Sequence[str] = ()) -> str:
    """The separator between a prompt and the text that follows: " " or "".

    Args:
        prompt: The prompt.
        text: The text that follows.
        space: True: a space, unless there is one already; False: none; None: as in ordinary writing.
        specials: The tokenizer's special tokens, which no space follows.
    """
    if space is not None:
        return " " if space and prompt[-1:] != " " and text[:1] != " " else ""
    joined = (
        prompt[-1:].isspace()
        or text[:1].isspace()
        or prompt.endswith(tuple(filter(None, specials)))
        or _leads(prompt)
        or _follows_closely(prompt, text)
        or _unspaced(prompt, text)
    )
    return "" if joined else " "


def _leads(prompt: str) -> bool:
    """Whether the prompt ends in a mark that stands directly before the next word."""
    last, before = prompt[-1:], prompt[-2:-1]
    kind = unicodedata.category(last) if last else ""
    if kind == "Sc":
        return not prompt[:-1].rstrip("" if last in _PREFIXED else None)[-1:].isdigit()
    if kind == "Pd" or last in ("=", "−"):
        return bool(before) and not before.isspace()
    if prompt.endswith("**"):
        return prompt.count("**") % 2 == 1
    if kind == "Ps" and last not in _CLOSED_BY:
        return True
    marks = _open_marks(prompt)
    opens = bool(marks) and marks[-1] == len(prompt) - 1
    return opens or bool(last and last in _LEADING) or bool(_ELISION.search(prompt) or _TAG.search(prompt))


def _follows_closely(prompt: str, text: str) -> bool:
    """Whether the text begins with a mark that stands directly after the previous word."""
    first, last = text[:1], prompt[-1:]
    kind = unicodedata.category(first) if first else ""
    marks = _open_marks(prompt)
    closes = bool(marks) and first != "" and first in _CLOSED_BY[prompt[marks[-1]]]
    signed = first.isdigit() and last in ("+", "-", "−")
    return closes or signed or kind in ("Pe", "Mn", "Mc", "Me") or bool(_SUFFIX.match(text))


def _unspaced(prompt: str, text: str) -> bool:
    """Whether both belong to scripts that are written without spaces.

    Chinese and Japanese take Latin words and numbers without a space as well; Thai and its neighbours set them off.
    """
    if _within(_EAST_ASIAN, prompt[-1:]):
        return True
    letter = next((character for character in reversed(prompt) if character.isalpha()), "")
    return _spaceless(text[:1]) and (not letter or _spaceless(prompt[-1:]) or _spaceless(letter))


def _open_marks(text: str) -> list[int]:
    """The places of quotation marks that are not closed again."""
    found: list[int] = []
    for i, character in enumerate(text):
        if character not in _CLOSED_BY:
            continue
        before = text[i - 1 : i]
        if found and character in _CLOSED_BY[text[found[-1]]]:
            found.pop()
        elif character in _MORE_OFTEN_CLOSING:
            if not before or before.isspace() or unicodedata.category(before) in ("Ps", "Pi", "Pd"):
                found.append(i)
        elif character != '"' or not before.isdigit():  # after a digit: inches
            found.append(i)
    return found


def _spaceless(character: str) -> bool:
    return _within(_EAST_ASIAN, character) or _within(_SOUTH_EAST_ASIAN, character)


def _within(ranges: Sequence[tuple[int, int]], character: str) -> bool:
    if not character:
        return False
    i = bisect_right(ranges, (ord(character), 0x110000)) - 1
    return i >= 0 and ranges[i][0] <= ord(character) < ranges[i][1]
