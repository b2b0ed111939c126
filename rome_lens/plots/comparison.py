"""Figures of edits and of what they are computed from."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.checking import checked
from rome_lens.plots.style import KIND_NAMES, LAYOUT, LEGEND_BELOW, METHOD_COLOURS, PANEL_TITLE, check_columns, plain


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
