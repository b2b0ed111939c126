"""Figures of scores."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.checking import checked
from rome_lens.plots.style import (
    LAYOUT,
    LEGEND_ABOVE,
    LEGEND_BELOW,
    METHOD_COLOURS,
    PANEL_TITLE,
    WHISKERS,
    checked_frame,
    counted,
    log_axis,
    plain,
    with_n,
)

_METRICS = ("S", "ES", "PS", "NS", "efficacy", "paraphrase", "portability", "locality")
_BESIDE = 3  # methods whose bars stand beside each other; more of them have a line each
_DASHES, _MARKS = (None, "dash", "longdashdot"), (None, "diamond", "square")  # of a sequence's methods
_TEXT = {METHOD_COLOURS[0]: "#666666"}  # of a method's numbers, where its colour is too pale to read


@checked
def plot_scores(summary: pd.DataFrame) -> go.Figure:
    """Bars of the scores with their intervals and, away from them, their numbers.

    Up to three methods stand side by side, in a panel for each protocol; their numbers are below the axis. More of them
    have a line each, in a panel for each protocol and score.

    Shown are S, ES, PS, NS, efficacy, paraphrase, portability and locality, those that a protocol has.

    Args:
        summary: What `summarize` gives.
    """
    metrics = [metric for metric in _METRICS if metric in summary]
    ends = [f"{metric}_{end}" for metric in metrics for end in ("low", "high")]
    summary = checked_frame(summary, ["method", "n", *ends], "summarize()")
    panels = list(summary.groupby("protocol", sort=False)) if "protocol" in summary else [("", summary)]
    shown = {str(name): [each for each in metrics if part[each].notna().any()] for name, part in panels}
    draw = _beside if summary["method"].nunique() <= _BESIDE else _below
    return draw([(str(name), part, shown[str(name)]) for name, part in panels])


Panels = list[tuple[str, pd.DataFrame, list[str]]]  # a protocol, its rows, the scores that it has


def _beside(panels: Panels) -> go.Figure:
    """A panel for each protocol: groups of upright bars."""
    titles = [name for name, _, _ in panels] if len(panels) > 1 else None
    figure = make_subplots(rows=len(panels), cols=1, subplot_titles=titles, vertical_spacing=0.4 / len(panels))
    figure.update_annotations(**PANEL_TITLE)
    methods = list(dict.fromkeys(method for _, part, _ in panels for method in part["method"]))
    colours = dict(zip(methods, METHOD_COLOURS, strict=False))
    for place, (_, part, metrics) in enumerate(panels, start=1):
        for _, row in part.iterrows():
            bars = _bars(row, metrics, upright=True, marker_color=colours[row["method"]], showlegend=place == 1)
            figure.add_trace(bars, row=place, col=1)
        texts = ["<br>".join([each, *_numbers(part, each, colours)]) for each in metrics]
        figure.update_xaxes(tickvals=metrics, ticktext=texts, title=counted(part["n"]), row=place, col=1)
    figure.update_layout(**LAYOUT, barmode="group", bargap=0.3, legend=LEGEND_ABOVE)
    figure.update_layout(height=(300 + 16 * len(methods)) * len(panels))
    figure.update_xaxes(ticks="")
    return figure.update_yaxes(title="score", range=[0, 1.02], showgrid=True, gridcolor="#eeeeee")


def _numbers(part: pd.DataFrame, metric: str, colours: Mapping[str, str]) -> list[str]:
    """A score of each method, in its colour."""
    found = [(colours[method], value) for method, value in zip(part["method"], part[metric], strict=True)]
    shown = [(_TEXT.get(colour, colour), value) for colour, value in found if pd.notna(value)]
    return [f'<span style="color:{colour}">{value:.2f}</span>' for colour, value in shown]


def _below(panels: Panels) -> go.Figure:
    """A row of panels for each protocol, a panel for each score: lying bars, with their numbers at the right."""
    width = max(len(metrics) for _, _, metrics in panels)
    named = [f"{name}:<br>" if len(panels) > 1 else "" for name, _, _ in panels]
    titles = [
        f"{name}{metrics[i]}" if i < len(metrics) else ""
        for name, (_, _, metrics) in zip(named, panels, strict=True)
        for i in range(width)
    ]
    figure = make_subplots(rows=len(panels), cols=width, subplot_titles=titles, shared_yaxes=True)
    figure.update_annotations(**PANEL_TITLE)
    for place, (_, part, metrics) in enumerate(panels, start=1):
        methods = [str(method) for method in part["method"]]
        for column, metric in enumerate(metrics, start=1):
            where = {"row": place, "col": column}
            colours = [METHOD_COLOURS[0 if method == "base" else 1] for method in methods]
            for (_, row), colour in zip(part.iterrows(), colours, strict=True):
                figure.add_trace(_bars(row, [metric], upright=False, marker_color=colour, showlegend=False), **where)
            numbers = ["" if pd.isna(value) else f"{value:.2f}" for value in part[metric]]
            text = {"mode": "text", "textposition": "middle right", "hoverinfo": "skip", "showlegend": False}
            figure.add_scatter(x=[1.04] * len(methods), y=methods, text=numbers, **text, **where)
            figure.update_xaxes(title=with_n("score", part), **where)
            figure.update_yaxes(categoryorder="array", categoryarray=methods[::-1], **where)
    figure.update_xaxes(range=[0, 1.4], tickvals=[0, 0.5, 1], showgrid=True, gridcolor="#eeeeee")
    figure.update_yaxes(ticks="")
    most = max(len(part) for _, part, _ in panels)
    top = {"margin_t": 48} if len(panels) > 1 else {}  # for titles of two lines
    height = (90 + 24 * most) * len(panels) + 20
    return figure.update_layout(**LAYOUT, barmode="overlay", bargap=0.35, height=height, **top)


def _bars(row: pd.Series, metrics: list[str], *, upright: bool, **look: object) -> go.Bar:
    """A method's scores with their intervals."""
    low, high = ([row[f"{metric}_{end}"] for metric in metrics] for end in ("low", "high"))
    value = [row[metric] for metric in metrics]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [end - mean for end, mean in zip(high, value, strict=True)],
        "arrayminus": [mean - end for end, mean in zip(low, value, strict=True)],
        **WHISKERS,
    }
    name = str(row["method"])
    along = {"x": metrics, "y": value, "error_y": error} if upright else {"x": value, "y": [name], "error_x": error}
    said = f"{name}, {'%{x} %{y:.3f}' if upright else metrics[0] + ' %{x:.3f}'}"
    return go.Bar(
        name=name,
        legendgroup=name,
        orientation="v" if upright else "h",
        customdata=[[low, high, row["n"]] for low, high in zip(low, high, strict=True)],
        hovertemplate=said + " [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}<extra></extra>",
        **along,
        **look,
    )


@runtime_checkable
class Edited(Protocol):
    """An `EditSequence`."""

    @property
    def checkpoints(self) -> pd.DataFrame:
        """What was measured along the way."""


_SEQUENCE_SCORES = {
    "ES": "efficacy (ES)",
    "PS": "paraphrases (PS)",
    "NS": "neighbourhood (NS)",
    "efficacy": "efficacy",
    "paraphrase": "paraphrases",
    "portability": "portability",
    "specificity": "specificity",
    "locality": "locality",
    "greedy_match": "greedy match",
    "contains": "answer contained",
}
_MANY = 300  # edits


@checked
def plot_sequence(frame: pd.DataFrame | Edited | Mapping[str, Edited]) -> go.Figure:
    """What piles up with the edits: a panel for each score, perplexity and norm growth, a line for each method.

    The scores are those that our scorers have in common (ES, PS, NS, efficacy, ...), or if there are none of them, all.

    A dotted line is the model before the first edit on the same records; error bars are those of `summarize`. From 300
    edits on their axis is logarithmic.

    Args:
        frame: what `edit_sequence` gives, or several by the methods' names; or their `checkpoints` put together, with a
            column `method`.
    """
    if not isinstance(frame, pd.DataFrame):
        runs = frame if isinstance(frame, Mapping) else {"edited": frame}
        tables = [run.checkpoints.assign(method=name) for name, run in runs.items()]
        frame = pd.concat(tables or [pd.DataFrame()])
    columns = ["method", "edits", "perplexity", "norm_growth"]
    frame = checked_frame(frame, columns, "EditSequence.checkpoints, with a method,")
    scores = {column: title for column, title in _SEQUENCE_SCORES.items() if column in frame}
    if not scores:  # those of a scorer of the user's, which have intervals too
        scores = {str(column): plain(str(column)) for column in frame if f"{column}_low" in frame}
    if not scores:
        raise ValueError(
            f"The frame has none of the scores {', '.join(_SEQUENCE_SCORES)}, and no others with their intervals. Give "
            "what EditSequence.checkpoints holds."
        )
    panels = scores | {"perplexity": "perplexity", "norm_growth": "norm growth |W - W0| / |W0|"}
    panels = {column: title for column, title in panels.items() if frame[column].notna().any()}
    rows = -(-len(panels) // 3)
    figure = make_subplots(rows=rows, cols=3, subplot_titles=list(panels.values()), vertical_spacing=0.36 / rows)
    across: dict[str, Any] = {"rangemode": "tozero"}
    if frame["edits"].max() >= _MANY:  # a logarithmic axis has no place for 0 edits: they are a dotted line
        first = frame[frame["edits"] == 0].set_index("method")["perplexity"]
        frame = frame[frame["edits"] > 0]
        frame = frame.assign(base_perplexity=frame["method"].map(first))
        across = log_axis(frame["edits"])
    figure.update_annotations(**PANEL_TITLE)
    for i, (method, part) in enumerate(frame.groupby("method", sort=False)):
        again, number = divmod(i, len(METHOD_COLOURS) - 1)  # where the colours begin again, lines and marks are others
        line = {"color": METHOD_COLOURS[1 + number], "width": 2, "dash": _DASHES[again % len(_DASHES)]}
        for place, column in enumerate(panels):
            where = {"row": 1 + place // 3, "col": 1 + place % 3, "legendgroup": str(method)}
            bars = {}
            if f"{column}_low" in part:
                above, below = part[f"{column}_high"] - part[column], part[column] - part[f"{column}_low"]
                bars = {"error_y": {"array": above, "arrayminus": below, "thickness": 1.2, "width": 3}}
            figure.add_scatter(
                x=part["edits"],
                y=part[column],
                name=str(method),
                mode="lines+markers",
                line=line,
                marker={"symbol": _MARKS[again % len(_MARKS)]},
                showlegend=place == 0,
                hovertemplate=f"{method}, %{{x}} edits: %{{y:.4g}}<extra></extra>",
                **bars,
                **where,
            )
            if f"base_{column}" in part:
                figure.add_scatter(
                    x=part["edits"],
                    y=part[f"base_{column}"],
                    name="before the first edit",
                    mode="lines",
                    line={"color": METHOD_COLOURS[0], "width": 2, "dash": "dot"},
                    showlegend=place == 0 and i == 0,
                    hovertemplate="before the first edit: %{y:.4g}<extra></extra>",
                    **(where | {"legendgroup": "base"}),
                )
    for place, column in enumerate(panels):
        where = {"row": 1 + place // 3, "col": 1 + place % 3}
        if column == "perplexity":
            seen = frame[column].dropna()
            least = seen[seen > 0].min()  # an axis of at least a factor of two: a change of some per cent looks small
            figure.update_yaxes(**log_axis(pd.Series([0.95 * least, max(2 * least, seen.max())])), **where)
        else:
            share = column in scores and frame[column].max() <= 1
            figure.update_yaxes(range=[0, 1.05] if share else None, rangemode="tozero", **where)
        figure.update_xaxes(title="edits = n" if column in scores else "edits", **across, **where)
    figure.update_layout(**LAYOUT, height=310 * rows, legend=LEGEND_BELOW)
    return figure
