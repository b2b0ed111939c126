"""Figures of edits and of what they are computed from."""

from typing import Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.checking import checked
from rome_lens.plots.style import KIND_NAMES, LAYOUT, LEGEND_BELOW, METHOD_COLOURS, PANEL_TITLE, checked_frame

_LEAST = 0.1  # the least that the axis of changes shows: one of a per cent is seen to be small


@runtime_checkable
class Compared(Protocol):
    """A `ModelComparison`."""

    @property
    def lens(self) -> pd.DataFrame:
        """The logit lens, layer by layer."""

    @property
    def contributions(self) -> pd.DataFrame:
        """How much outputs changed."""


@checked
def plot_comparison(lens: pd.DataFrame | Compared, contributions: pd.DataFrame | None = None) -> go.Figure:
    """Two panels by layer, means over prompts: the answer's probability under the logit lens before and after, and how
    much attention and MLP outputs moved.

    Args:
        lens: what `compare_models` gives, or its `lens`.
        contributions: its `contributions`, where `lens` is a frame.

    Raises:
        ValueError: a frame lacks a column, or `contributions` is missing.
    """
    if not isinstance(lens, pd.DataFrame):
        contributions = lens.contributions
        lens = lens.lens
    if contributions is None:
        raise ValueError(
            "contributions is None beside a frame. Give what compare_models() returns, or both its frames."
        )
    lens = checked_frame(lens, ["condition", "layer", "answer_probability"], "compare_models().lens")
    contributions = checked_frame(contributions, ["kind", "layer", "change"], "compare_models().contributions")
    answers = set(lens.get("answer", ()))
    answer = str(answers.pop()).strip() if len(answers) == 1 else "top token after"
    figure = make_subplots(
        cols=2,
        horizontal_spacing=0.12,
        subplot_titles=[f"logit lens: p({answer})", "change of outputs |after - before| / |before|"],
    )
    figure.update_annotations(**PANEL_TITLE)
    most = contributions.groupby(["kind", "layer"])["change"].mean().max()
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
    prompts = lens["prompt"].nunique() if "prompt" in lens else 1
    figure.update_xaxes(title=f"layer (n = {prompts})" if prompts > 1 else "layer")
    figure.update_yaxes(title="probability", range=[0, 1.02], col=1)
    figure.update_yaxes(title="relative change", range=[0, max(_LEAST, 1.05 * most)], col=2)
    figure.update_layout(**LAYOUT, height=380, legend=LEGEND_BELOW)
    return figure
