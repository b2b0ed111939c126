"""What all figures share: colours, names, fonts, and labels that cannot be taken for markup."""

import math
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.colors import get_colorscale, sample_colorscale

KIND_COLOURS = {"resid": "Purples", "mlp": "Greens", "attn": "Reds"}
KIND_NAMES = {"resid": "residual state", "mlp": "MLP", "attn": "attention", "head": "head"}
METRIC_NAMES = {
    "prob": "p({})",
    "logprob": "log p({}), nats",
    "logit_diff": "logit difference",
    "kl": "KL from clean, nats",
}
ROLE_COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#999999", "#cc79a7")  # Okabe and Ito: colour-blind safe
METHOD_COLOURS = ("#b3b3b3", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SIZE = 13  # of all letters but a trace's title, in pixels; see saving.py for their size in print
TEMPLATE = go.layout.Template(pio.templates["simple_white"])
TEMPLATE.layout.update(
    font={"family": FONT, "size": SIZE},
    xaxis_title_font_size=SIZE,  # plotly's own titles are larger than all else
    yaxis_title_font_size=SIZE,
    margin={"l": 10, "r": 10, "t": 36, "b": 10},  # axes make room for their labels by themselves
    colorway=METHOD_COLOURS,
)
LAYOUT = {"template": TEMPLATE}
LEGEND_ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"}
LEGEND_BELOW = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0, "xanchor": "left"}
PANEL_TITLE = {"font_size": SIZE}  # for update_annotations
TITLE = {"font": {"size": 15}, "x": 0, "xref": "paper", "xanchor": "left"}  # of a whole figure
WHISKERS = {"thickness": 1.5, "width": 3, "color": "#222222"}  # on bars, which are paler
HEATMAP_AXIS = {"showline": False, "ticks": "", "zeroline": False}


def token_label(token: str) -> str:
    """A token of a `checked_frame` as an axis shows it: without blanks around it, and never empty."""
    return token.replace("\n", "⏎").strip() or "␣"


def plain(text: str) -> str:
    """The text as plotly shows it: a tag-like token such as <|endoftext|> would be left out otherwise."""
    return escape(str(text), quote=False)


def around_zero(name: str, grid: pd.DataFrame) -> dict[str, Any]:
    """A scale of colours above 0 and greys below, as dark for as much: colorscale, zmin, zmax."""
    values = grid.to_numpy(dtype=float)
    most, least = max(float(np.nanmax(values)), 1e-6), min(float(np.nanmin(values)), 0.0)
    zero = -least / (most - least)
    above = [(zero + (1 - zero) * at, colour) for at, colour in get_colorscale(name)]
    below = [(0.0, sample_colorscale("Greys", min(zero / (1 - zero), 1.0))[0])] if least < 0 else []
    return {"colorscale": [*below, *above], "zmin": least, "zmax": most}


def log_axis(values: pd.Series) -> dict[str, Any]:
    """A logarithmic axis whose ticks are numbers: all digits, 1, 2 and 5, or powers of ten."""
    low, high = float(values.min()), float(values.max())
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    span = math.log10(high / low)
    few, digits = span < 1.5, range(1, 10) if span < 0.7 else (1, 2, 5) if span < 1.5 else (1,)
    ticks = [digit * 10.0**e for e in range(first, last + 1) for digit in digits]
    texts = [f"{tick:,.6g}" for tick in ticks]
    if first < -3 or last > 5:
        texts = [f"10<sup>{round(math.log10(tick))}</sup>" for tick in ticks] if not few else texts
    pad = 0.05 * span + 0.02
    ends = [math.log10(low) - pad, math.log10(high) + pad]
    return {"type": "log", "tickvals": ticks, "ticktext": texts, "range": ends}


def counted(numbers: pd.Series) -> str:
    """Of how many facts or records: "n = 60", "n = 58 to 60"."""
    least, most = int(numbers.min()), int(numbers.max())
    return f"n = {least}" if least == most else f"n = {least} to {most}"


def with_n(title: str, frame: pd.DataFrame) -> str:
    """An axis title with the number of facts or records that its means are over, where the frame tells it."""
    return f"{title} ({counted(frame['n'].dropna())})" if "n" in frame and frame["n"].notna().any() else title


def checked_frame(frame: pd.DataFrame, columns: list[str], source: str) -> pd.DataFrame:
    """The frame with every text in it `plain`, so that no name, token or prompt is taken for markup.

    Raises:
        ValueError: it has no rows, or is not what `source` returns.
    """
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(f"The frame lacks the columns {missing}. Give what {source} returns.")
    if frame.empty:
        raise ValueError(f"The frame has no rows. Give what {source} returns.")
    return frame.map(lambda cell: plain(cell) if isinstance(cell, str) else cell)
