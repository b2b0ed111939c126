"""Figures of edits and of what they are computed from."""

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from rome_lens.checking import checked
from rome_lens.plots.style import KIND_NAMES, LAYOUT, LEGEND_BELOW, METHOD_COLOURS, PANEL_TITLE, check_columns, plain


@checked
def plot_convergence(frame: pd.DataFrame) -> go.Figure:
    """How well covariances are determined as tokens grow, a line for each layer: how far two halves of the text differ,
    how nearly they give the same direction, and how many directions the keys spread over.

    Args:
        frame: a row for each layer and number of tokens: "layer" and what `KeyCovariance.report` tells.

    Raises:
        ValueError: the frame lacks a column.
    """
    panels = {
        "half_difference": "difference of halves |C1 - C2| / |C|",
        "half_cosine": "cosine of C1<sup>-1</sup>k and C2<sup>-1</sup>k",
        "effective_rank": "effective rank",
    }
    check_columns(frame, ["layer", "tokens", *panels], "KeyCovariance.report()")
    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.07, subplot_titles=list(panels.values()))
    figure.update_annotations(**PANEL_TITLE)
    shades = sample_colorscale("Viridis", max(2, frame["layer"].nunique()), high=0.9)
    for (layer, part), shade in zip(frame.sort_values("tokens").groupby("layer"), shades, strict=False):
        for column, value in enumerate(panels, start=1):
            figure.add_scatter(
                x=part["tokens"],
                y=part[value],
                name=f"layer {layer}",
                legendgroup=str(layer),
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": shade, "width": 2},
                hovertemplate=f"layer {layer}, %{{x}} tokens: %{{y:.3g}}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title="tokens", type="log", dtick=1)
    figure.update_yaxes(type="log", col=1)
    figure.update_yaxes(rangemode="tozero", col=2)
    figure.update_yaxes(rangemode="tozero", col=3)
    figure.update_layout(**LAYOUT, height=360, legend=LEGEND_BELOW)
    return figure


@checked
def plot_bleed_over(frame: pd.DataFrame, *, forecast: str = "size", change: str = "kl") -> go.Figure:
    """A point for each prompt: how much of the edit was forecast to reach it, and how much changed.

    An axis is logarithmic if all its values are above 0.

    Args:
        frame: what `analyses.bleed_over` writes: case_id, prompt, and the two columns to draw.
        forecast: the column across.
        change: the column up.

    Raises:
        ValueError: the frame lacks a column.
    """
    check_columns(frame, ["case_id", "prompt", forecast, change], "analyses.bleed_over")
    figure = go.Figure(
        go.Scatter(
            x=frame[forecast],
            y=frame[change],
            mode="markers",
            marker={"size": 6, "color": METHOD_COLOURS[1], "opacity": 0.5},
            text=[plain(prompt) for prompt in frame["prompt"]],
            customdata=frame["case_id"],
            hovertemplate="%{text}<br>record %{customdata}: %{x:.3f}, %{y:.3g}<extra></extra>",
        )
    )
    scales = {name: "log" if (frame[name] > 0).all() else "linear" for name in (forecast, change)}
    figure.update_layout(
        **LAYOUT,
        height=420,
        xaxis={"title": f"forecast: {plain(forecast)}", "type": scales[forecast]},
        yaxis={"title": f"measured: {plain(change)}", "type": scales[change]},
    )
    return figure


@checked
def plot_comparison(lens: pd.DataFrame, contributions: pd.DataFrame) -> go.Figure:
    """Two panels by layer, means over prompts: the answer's probability under the logit lens before and after, and how
    much attention and MLP outputs moved.

    Args:
        lens: `ModelComparison.lens`.
        contributions: `ModelComparison.contributions`.

    Raises:
        ValueError: a frame lacks a column.
    """
    check_columns(lens, ["condition", "layer", "answer_probability"], "compare_models().lens")
    check_columns(contributions, ["kind", "layer", "change"], "compare_models().contributions")
    answers = set(lens.get("answer", ()))
    answer = plain(answers.pop().strip()) if len(answers) == 1 else "top token after"
    figure = make_subplots(
        cols=2,
        horizontal_spacing=0.12,
        subplot_titles=[f"logit lens: p({answer})", "relative change of outputs"],
    )
    figure.update_annotations(**PANEL_TITLE)
    panels = [(lens, "condition", "answer_probability"), (contributions, "kind", "change")]
    for col, (frame, by, column) in enumerate(panels, start=1):
        for i, (name, part) in enumerate(frame.groupby(by, sort=False)):
            means = part.groupby("layer")[column].mean()
            figure.add_scatter(
                x=means.index,
                y=means,
                name=KIND_NAMES.get(str(name), str(name)),
                mode="lines+markers",
                line={"color": METHOD_COLOURS[2 * (col - 1) + i], "width": 2},
                marker={"size": 4},
                row=1,
                col=col,
            )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(**LAYOUT, height=380, legend=LEGEND_BELOW)
    return figure
