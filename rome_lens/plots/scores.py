"""Figures of scores."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.checking import checked
from rome_lens.plots.style import LAYOUT, LEGEND_ABOVE, LEGEND_BELOW, METHOD_COLOURS, PANEL_TITLE, check_columns, plain


@checked
def plot_scores(summary: pd.DataFrame) -> go.Figure:
    """Bars of S, ES, PS and NS with their intervals, side by side for each method (before and after an edit).

    Args:
        summary: what `summarize` gives.

    Raises:
        ValueError: the frame lacks a column.
    """
    check_columns(summary, ["method", "n"], "summarize()")
    metrics = [metric for metric in ("S", "ES", "PS", "NS") if metric in summary]
    check_columns(summary, [f"{metric}_{end}" for metric in metrics for end in ("low", "high")], "summarize()")
    figure = go.Figure()
    for i, (_, row) in enumerate(summary.iterrows()):
        value = [row[metric] for metric in metrics]
        figure.add_bar(
            name=plain(row["method"]),
            x=metrics,
            y=value,
            marker_color=METHOD_COLOURS[i % len(METHOD_COLOURS)],
            texttemplate="%{y:.2f}",
            textposition="inside",
            insidetextanchor="start",
            textangle=0,
            constraintext="none",
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [row[f"{metric}_high"] - row[metric] for metric in metrics],
                "arrayminus": [row[metric] - row[f"{metric}_low"] for metric in metrics],
                "thickness": 1.2,
                "color": "#333333",
            },
            customdata=[[row[f"{metric}_low"], row[f"{metric}_high"], row["n"]] for metric in metrics],
            hovertemplate="%{x} %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}",
        )
    figure.update_layout(
        **LAYOUT,
        barmode="group",
        bargap=0.3,
        height=360,
        xaxis={"ticks": "", "tickfont": {"size": 14}},
        yaxis={"title": "score", "range": [0, 1.02], "showgrid": True, "gridcolor": "#eeeeee"},
        legend=LEGEND_ABOVE,
    )
    return figure


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
