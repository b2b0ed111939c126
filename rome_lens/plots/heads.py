"""The map of all attention heads at one position."""

import pandas as pd
import plotly.graph_objects as go

from rome_lens.checking import checked
from rome_lens.plots.given import Framed, ends, frame_of, told
from rome_lens.plots.style import HEATMAP_AXIS, LAYOUT, SIZE, TITLE, around_zero, checked_frame, token_label


@checked
def plot_heads(frame: pd.DataFrame | Framed, *, answer: str | None = None, clean: float | None = None) -> go.Figure:
    """What each attention head brings back at one position: layers across, heads down; greys are effects below 0.

    Args:
        frame: what `trace_heads` gives, or its `to_frame()`.
        answer: what the metric is of; None: the map's.
        clean: the metric after the clean prompt, told below the title; None: the map's.

    Raises:
        ValueError: the frame lacks a column, or holds more than one position.
    """
    answer, clean = told(frame, answer, clean)
    frame = frame_of(frame)
    frame = checked_frame(frame, ["layer", "head", "position", "token", "indirect_effect"], "trace_heads()")
    if frame["position"].nunique() > 1:
        raise ValueError(f"The frame holds the positions {list(frame['position'].unique())}, expected one.")
    grid = frame.pivot(index="head", columns="layer", values="indirect_effect")
    title = f"Restored attention heads at the token “{token_label(frame['token'].iloc[0])}”"
    heatmap = go.Heatmap(
        z=grid.to_numpy(),
        x=grid.columns,
        y=grid.index,
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": "indirect effect", "side": "right", "font": {"size": SIZE}},
            "thickness": 12,
            "outlinewidth": 0,
        },
        hovertemplate="head %{y}, layer %{x}: %{z:.4f}<extra></extra>",
        **around_zero("Blues", grid),
    )
    return go.Figure(heatmap).update_layout(
        **LAYOUT,
        height=120 + 26 * len(grid),
        margin_t=58,
        title={"text": title, **TITLE, "subtitle": {"text": ends(frame, answer, clean)}},
        xaxis={"title": "layer", **HEATMAP_AXIS},
        yaxis={"title": "head", "autorange": "reversed", "dtick": 1, **HEATMAP_AXIS},
    )
