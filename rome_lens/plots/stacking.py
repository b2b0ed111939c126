"""A figure's panels one below the other, for the width of one column of a paper."""

import math

import plotly.graph_objects as go
from plotly.basedatatypes import BaseTraceType

GAP = 88  # pixels between panels: the upper one's tick labels and axis title, the lower one's own title
MARGINS = 100  # pixels of a figure's height that its panels do not fill
HEIGHT = 450  # pixels of a figure that names no height, as plotly has it
MOST = 240  # pixels that a panel is high
MANY, HALVES = 6, ((0, 0.4), (0.6, 1))  # more panels than so many stand beside each other, as far of the width
WIDTH, LETTER, MARK, LINE = 412, 7, 50, 20  # pixels of a column, and of a legend: a letter, a line's mark, an entry
ROW = 14  # pixels of a row of a table around its text


def stacked(figure: go.Figure) -> go.Figure:
    """A copy with one panel to a row, or two where there are many, in reading order, each as high as it was.

    Every panel gets the tick labels and the axis title that it had shared with its neighbours; its own title and its
    colour scale move with it. A table gets one column, with the cells of a row below each other. A figure of one panel,
    or on other axes, is copied as it is.
    """
    figure = go.Figure(figure)
    if not all("xaxis" in trace for trace in figure.data):
        return _table(figure)
    panels = [(_axis(figure, x), _axis(figure, y)) for x, y in dict.fromkeys(map(_place, figure.data))]
    if len(panels) < 2:
        return figure
    rows = len({y.domain for _, y in panels})
    high = max((figure.layout.height or HEIGHT) - MARGINS, MARGINS) / rows
    if not any(y.ticktext or y.categoryarray for _, y in panels):  # a line of letters for each token or method stays
        high = min(high, MOST)
    across = 1 if len(panels) <= MANY else 2
    whole = math.ceil(len(panels) / across) * (high + GAP) - GAP
    moved = [_title(figure, x, y) for x, y in panels]
    for i, ((x, y), title) in enumerate(zip(panels, moved, strict=True)):
        top = 1 - i // across * (high + GAP) / whole
        x.domain = (0, 1) if across == 1 else HALVES[i % 2]
        y.domain = (max(top - high / whole, 0), top)
        if y.matches:
            y.update(showticklabels=True, title=_axis(figure, y.matches).title)
        if x.matches:
            x.update(showticklabels=True, title=x.title or _axis(figure, x.matches).title)
        if title is not None:
            title.update(x=sum(x.domain) / 2, y=top)
    for trace in figure.data:
        if "colorbar" in trace:
            (_, right), (low, top) = (_axis(figure, name).domain for name in _place(trace))
            trace.colorbar.update(x=right + 0.01, y=(low + top) / 2, yanchor="middle", len=top - low)
    return figure.update_layout(height=whole + MARGINS + _legend(figure))


def _table(figure: go.Figure) -> go.Figure:
    """A table of several columns as one, each cell below the name of its column."""
    table = figure.data[0] if len(figure.data) == 1 else None
    if not isinstance(table, go.Table) or len(table.cells.values or ()) < 2:
        return figure
    names = [name if isinstance(name, str) else name[0] for name in table.header.values]
    cells = [
        f"{name}<br>{cell}"
        for row in zip(*table.cells.values, strict=True)
        for name, cell in zip(names, row, strict=True)
    ]
    table.cells.values = [cells]
    table.header.update(values=[""], height=0, line_width=0)
    lines = sum(cell.count("<br>") + 1 for cell in cells)
    return figure.update_layout(height=LINE + (table.cells.height or LINE) * lines + ROW * len(cells))


def _legend(figure: go.Figure) -> int:
    """Makes a column of a legend that is too wide for one line; gives its height beyond one line, in pixels."""
    names = [str(trace.name) for trace in figure.data if trace.name and trace.showlegend is not False]
    if figure.layout.legend.orientation != "h" or sum(LETTER * len(name) + MARK for name in names) <= WIDTH:
        return 0
    figure.update_layout(legend={"orientation": "v", "tracegroupgap": 0})
    return LINE * (len(names) - 1)


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
