"""Figures of scores."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.checking import checked
from rome_lens.plots.style import LAYOUT, LEGEND_ABOVE, LEGEND_BELOW, METHOD_COLOURS, PANEL_TITLE, check_columns, plain

_METRICS = ("S", "ES", "PS", "NS", "efficacy", "paraphrase", "portability", "locality")


@checked
def plot_scores(summary: pd.DataFrame) -> go.Figure:
    """Bars of the scores with their intervals, side by side for each method; a panel for each protocol.

    Shown are S, ES, PS, NS, efficacy, paraphrase, portability and locality, those that a protocol has.

    Args:
        summary: What `summarize` gives.

    Raises:
        ValueError: The frame lacks a column.
    """
    check_columns(summary, ["method", "n"], "summarize()")
    metrics = [metric for metric in _METRICS if metric in summary]
    check_columns(summary, [f"{metric}_{end}" for metric in metrics for end in ("low", "high")], "summarize()")
    panels = list(summary.groupby("protocol", sort=False)) if "protocol" in summary else [("", summary)]
    titles = [plain(str(name)) for name, _ in panels] if len(panels) > 1 else None
    figure = make_subplots(rows=len(panels), cols=1, subplot_titles=titles, vertical_spacing=0.3 / len(panels))
    figure.update_annotations(**PANEL_TITLE)
    colours = {method: METHOD_COLOURS[i % len(METHOD_COLOURS)] for i, method in enumerate(summary["method"].unique())}
    for place, (_, part) in enumerate(panels, start=1):
        shown = [metric for metric in metrics if part[metric].notna().any()]
        for _, row in part.iterrows():
            bar = _bar(row, shown, colours[row["method"]], legend=place == 1)
            figure.add_trace(bar, row=place, col=1)
    figure.update_layout(**LAYOUT, barmode="group", bargap=0.3, height=100 + 260 * len(panels), legend=LEGEND_ABOVE)
    figure.update_xaxes(ticks="", tickfont={"size": 14})
    figure.update_yaxes(title="score", range=[0, 1.02], showgrid=True, gridcolor="#eeeeee")
    return figure


def _bar(row: pd.Series, metrics: list[str], colour: str, *, legend: bool) -> go.Bar:
    """A method's scores with their intervals."""
    ends = {end: [row[f"{metric}_{end}"] for metric in metrics] for end in ("low", "high")}
    value = [row[metric] for metric in metrics]
    return go.Bar(
        name=plain(row["method"]),
        legendgroup=plain(row["method"]),
        showlegend=legend,
        x=metrics,
        y=value,
        marker_color=colour,
        texttemplate="%{y:.2f}",
        textposition="inside",
        insidetextanchor="start",
        textangle=0,
        constraintext="none",
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [high - mean for high, mean in zip(ends["high"], value, strict=True)],
            "arrayminus": [mean - low for low, mean in zip(ends["low"], value, strict=True)],
            "thickness": 1.2,
            "color": "#333333",
        },
        customdata=[[low, high, row["n"]] for low, high in zip(ends["low"], ends["high"], strict=True)],
        hovertemplate="%{x} %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}",
    )


@checked
def plot_sequence(frame: pd.DataFrame) -> go.Figure:
    """What piles up with the edits: a panel for each score, perplexity and norm growth, a line for each method.

    A dotted line is the model before the first edit on the same records; error bars are those of `summarize`.

    Args:
        frame: the `checkpoints` of one or more EditSequences, put together, with a column `method`.

    Raises:
        ValueError: the frame lacks a column.
    """
    check_columns(
        frame, ["method", "edits", "perplexity", "norm_growth", "ES"], "EditSequence.checkpoints, with a method,"
    )
    panels = {
        "ES": "efficacy (ES)",
        "PS": "paraphrases (PS)",
        "NS": "neighbourhood (NS)",
        "perplexity": "perplexity",
        "norm_growth": "norm growth |W - W0| / |W0|",
    }
    panels = {column: title for column, title in panels.items() if column in frame and frame[column].notna().any()}
    figure = make_subplots(rows=2, cols=3, subplot_titles=list(panels.values()), vertical_spacing=0.18)
    figure.update_annotations(**PANEL_TITLE)
    for i, (method, part) in enumerate(frame.groupby("method", sort=False)):
        colour = METHOD_COLOURS[1 + i % (len(METHOD_COLOURS) - 1)]
        for place, column in enumerate(panels):
            where = {"row": 1 + place // 3, "col": 1 + place % 3, "legendgroup": str(method)}
            bars = {}
            if f"{column}_low" in part:
                above, below = part[f"{column}_high"] - part[column], part[column] - part[f"{column}_low"]
                bars = {"error_y": {"array": above, "arrayminus": below, "thickness": 1, "width": 2}}
            figure.add_scatter(
                x=part["edits"],
                y=part[column],
                name=plain(str(method)),
                mode="lines+markers",
                line={"color": colour, "width": 2},
                showlegend=place == 0,
                hovertemplate=f"{plain(str(method))}, %{{x}} edits: %{{y:.4g}}<extra></extra>",
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
            figure.update_yaxes(type="log", **where)
        else:
            figure.update_yaxes(range=[0, 1.05] if column in ("ES", "PS", "NS") else None, rangemode="tozero", **where)
        figure.update_xaxes(title="edits", rangemode="tozero", **where)
    figure.update_layout(**LAYOUT, height=620, legend=LEGEND_BELOW)
    return figure
