"""A figure's panels one below the other, for the width of one column of a paper."""

import math

import plotly.graph_objects as go
from plotly.basedatatypes import BaseTraceType

GAP = 88  # pixels between panels: the upper one's tick labels and axis title, the lower one's own title
MARGINS = 100  # pixels of a figure's height that its panels do not fill
HEIGHT = 450  # pixels of a figure that names no height, as plotly has it
MOST = 240  # pixels that a panel is high


def stacked(figure: go.Figure) -> go.Figure:
    """A copy with one panel to a row, in reading order, each as high as it was.

    Every panel gets the tick labels and the axis title that it had shared with its neighbours; its own title and its
    colour scale move with it. A figure of one panel, or without axes, is copied as it is.
    """
    figure = go.Figure(figure)
    if not all("xaxis" in trace for trace in figure.data):
        return figure  # such as a table, which is on no axes
    panels = [(_axis(figure, x), _axis(figure, y)) for x, y in dict.fromkeys(map(_place, figure.data))]
    if len(panels) < 2:
        return figure
    rows = len({y.domain for _, y in panels})
    high = max((figure.layout.height or HEIGHT) - MARGINS, MARGINS) / rows
    if not any(y.ticktext or y.categoryarray for _, y in panels):  # a line of letters for each token or method stays
        high = min(high, MOST)
    whole = len(panels) * (high + GAP) - GAP
    moved = [_title(figure, x, y) for x, y in panels]
    for i, ((x, y), title) in enumerate(zip(panels, moved, strict=True)):
        top = 1 - i * (high + GAP) / whole
        x.domain, y.domain = (0, 1), (max(top - high / whole, 0), top)
        if y.matches:
            y.update(showticklabels=True, title=_axis(figure, y.matches).title)
        if x.matches:
            x.update(showticklabels=True, title=x.title or _axis(figure, x.matches).title)
        if title is not None:
            title.update(x=0.5, y=top)
    for trace in figure.data:
        if "colorbar" in trace:
            low, top = _axis(figure, _place(trace)[1]).domain
            trace.colorbar.update(x=1.01, y=(low + top) / 2, yanchor="middle", len=top - low)
    return figure.update_layout(height=whole + MARGINS)


def _place(trace: BaseTraceType) -> tuple[str, str]:
    """The axes that a trace is drawn on."""
    return trace.xaxis or "x", trace.yaxis or "y"


def _axis(figure: go.Figure, name: str) -> go.layout.XAxis | go.layout.YAxis:
    """An axis by the name that traces call it, such as "x2"."""
    return figure.layout[f"{name[0]}axis{name[1:]}"]


def _title(figure: go.Figure, x: go.layout.XAxis, y: go.layout.YAxis) -> go.layout.Annotation | None:
    """What stands over the middle of a panel."""
    over = (sum(x.domain) / 2, y.domain[1])
    notes = [note for note in figure.layout.annotations if (note.xref, note.yref) == ("paper", "paper")]
    return next((note for note in notes if math.dist((note.x, note.y), over) < 1e-6), None)
