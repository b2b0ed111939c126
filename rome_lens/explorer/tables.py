"""The explorer's tables as HTML."""

from html import escape

import pandas as pd


def token(text: str) -> str:
    """A token with its quotation marks, so that its spaces show."""
    return f"<code>{escape(repr(text))}</code>"


def table(frame: pd.DataFrame) -> str:
    """A frame; numbers with three places."""
    shown = frame.copy()
    for name, write in (("prompt", escape), ("token", token)):
        if name in shown:
            shown[name] = [write(text) for text in shown[name]]
    return _html(shown)


def changes(frame: pd.DataFrame) -> str:
    """Probabilities and ranks before and after; green where a token has gained, red where it has lost."""
    gained = frame["after"] - frame["before"]
    shown = pd.DataFrame(
        {
            "prompt": frame["prompt"].map(escape),
            "token": frame["token"].map(token),
            "before": [_ranked(p, rank) for p, rank in zip(frame["before"], frame["rank_before"], strict=True)],
            "after": [
                f'<span style="background: rgba({_GREEN if gain > 0 else _RED}, {min(abs(gain), 1):.2f})">'
                f"{_ranked(p, rank)}</span>"
                for p, rank, gain in zip(frame["after"], frame["rank_after"], gained, strict=True)
            ],
        }
    )
    shown["prompt"] = shown["prompt"].mask(shown["prompt"].duplicated(), "")
    return _html(shown)


def _ranked(probability: float, rank: int) -> str:
    """A number and its rank; a narrow column breaks between them."""
    return f"{probability:.3f} (rank&nbsp;{rank})"


_GREEN, _RED = "0, 160, 60", "220, 40, 30"


def _html(frame: pd.DataFrame) -> str:
    body = frame.to_html(index=False, escape=False, justify="left", float_format=lambda value: f"{value:.3f}", border=0)
    return f'<div style="overflow-x: auto">{body}</div>'
