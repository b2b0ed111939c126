"""Heatmaps of causal traces: tokens or their roles down, layers across (paper figures 1 and 2)."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.checking import checked
from rome_lens.plots.given import Framed, Several, ends, frame_of, metric_name, metric_of, told
from rome_lens.plots.style import (
    HEATMAP_AXIS,
    KIND_COLOURS,
    KIND_NAMES,
    LAYOUT,
    METRIC_NAMES,
    PANEL_TITLE,
    SIZE,
    TITLE,
    around_zero,
    checked_frame,
    token_label,
    with_n,
)

_TRACE = ["position", "token", "role", "layer", "kind", "window", "indirect_effect"]


@checked
def plot_trace(frame: pd.DataFrame | Framed, *, answer: str | None = None, clean: float | None = None) -> go.Figure:
    """The paper's heatmap (figure 1): tokens down, layers across, subject tokens starred.

    Purple is the residual state, green MLPs, red attention, blue a head. The colour scale starts at the corrupted
    value: a cell at or below it has the palest colour (at or above it for "kl", where less is more restored, and for
    a metric of your own that falls farther than it rises). An approximate grid is called so in the title.

    Args:
        frame: what `causal_trace` gives, or its `to_frame()`: one fact, one kind.
        answer: what the probability is of; None: the trace's.
        clean: the metric after the clean prompt, told below the title; None: the trace's.

    Raises:
        ValueError: the frame lacks a column, or holds more than one kind.
    """
    answer, clean = told(frame, answer, clean)
    frame = frame_of(frame)
    frame = checked_frame(frame, _TRACE, "to_frame()")
    kinds = frame["kind"].unique()
    if len(kinds) != 1:
        raise ValueError(f"The frame holds the kinds {list(kinds)}, expected one. Plot each kind for itself.")
    heatmap, names = _trace_heatmap(frame, answer)
    figure = go.Figure(heatmap)
    figure.update_layout(
        **LAYOUT,
        height=124 + 26 * len(names),
        margin_t=58,
        title={"text": f"Restored {_title(frame)}", **TITLE, "subtitle": {"text": ends(frame, answer, clean)}},
        xaxis={"title": "layer", **HEATMAP_AXIS},
        yaxis={"autorange": "reversed", "tickvals": list(heatmap.y), "ticktext": names, **HEATMAP_AXIS},
    )
    return figure


@checked
def plot_traces(frame: pd.DataFrame | Several, *, answer: str | None = None, clean: float | None = None) -> go.Figure:
    """The heatmaps of one fact side by side, a panel for each kind of state, each with its own colour scale: see
    `plot_trace`.

    Args:
        frame: what `trace_kinds` gives, a list of traces, or their `to_frame()` put together.
        answer: what the probability is of; None: the traces'.
        clean: the metric after the clean prompt, told above the panels; None: the traces'.

    Raises:
        ValueError: the frame lacks a column, or there are no traces.
    """
    answer, clean = told(frame, answer, clean)
    frame = frame_of(frame)
    frame = checked_frame(frame, _TRACE, "to_frame()")
    parts = [part for _, part in frame.groupby("kind", sort=False)]
    drawn = [_trace_heatmap(part, answer) for part in parts]
    names = drawn[0][1]
    figure = _side_by_side([heatmap for heatmap, _ in drawn], [_title(part) for part in parts])
    figure.update_yaxes(tickvals=list(drawn[0][0].y), ticktext=names)
    if said := ends(frame, answer, clean):
        figure.update_layout(margin_t=62, title={"text": said, **TITLE, "font_size": SIZE, "y": 0.97, "yanchor": "top"})
    return figure.update_layout(height=(126 if said else 100) + 20 * len(names))


@checked
def plot_effect_maps(frame: pd.DataFrame) -> go.Figure:
    """The paper's figure 2: average indirect effects, token roles down, layers across, a panel for each kind of state
    with its own colour scale, palest at 0; effects below 0 are grey.

    Args:
        frame: what `average_effects` gives.
    """
    frame = checked_frame(frame, ["kind", "role", "layer", "mean", "n"], "average_effects()")
    heatmaps = []
    for kind, part in frame.groupby("kind", sort=False):
        grid = part.pivot(index="role", columns="layer", values="mean").loc[part["role"].unique()]
        heatmaps.append(
            go.Heatmap(
                z=grid.to_numpy(),
                x=grid.columns,
                y=grid.index,
                colorbar={"title": {"text": "average indirect effect"}},
                **around_zero(KIND_COLOURS.get(str(kind), "Blues"), grid),
                hovertemplate="%{y}, layer %{x}: %{z:.4f}<extra></extra>",
            )
        )
    titles = [KIND_NAMES.get(kind, kind) for kind in frame["kind"].unique()]
    figure = _side_by_side(heatmaps, titles).update_xaxes(title=with_n("layer", frame))
    return figure.update_layout(height=100 + 24 * frame["role"].nunique())


def _trace_heatmap(frame: pd.DataFrame, answer: str | None) -> tuple[go.Heatmap, list[str]]:
    """The grid of one kind, and the names of its rows."""
    metric = metric_of(frame)
    grid = frame.pivot(index="position", columns="layer", values=metric)
    tokens = frame.drop_duplicates("position").sort_values("position")
    names = [
        token_label(token) + ("*" if "subject token" in role else "")
        for token, role in zip(tokens["token"], tokens["role"], strict=True)
    ]
    corrupted = (frame[metric] - frame["indirect_effect"]).iloc[0]
    least, most = grid.min(axis=None), grid.max(axis=None)
    downwards = metric == "kl" or bool(metric not in METRIC_NAMES and corrupted - least > most - corrupted)
    farthest = least if downwards else most
    if abs(farthest - corrupted) < 1e-6 or (farthest > corrupted) == downwards:
        farthest = corrupted - 1e-6 if downwards else corrupted + 1e-6
    heatmap = go.Heatmap(
        z=grid.to_numpy(),
        x=grid.columns,
        y=grid.index,
        colorscale=KIND_COLOURS.get(frame["kind"].iloc[0], "Blues"),
        reversescale=downwards,
        zmin=min(corrupted, farthest),
        zmax=max(corrupted, farthest),
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": metric_name(metric, answer), "font": {"size": SIZE}},
            "thickness": 12,
            "outlinewidth": 0,
            "nticks": 6,
        },
        customdata=[[name] * grid.shape[1] for name in names],
        hovertemplate="%{customdata}, layer %{x}: %{z:.3f}<extra></extra>",
    )
    return heatmap, names


def _title(frame: pd.DataFrame) -> str:
    """What is restored in a trace's frame."""
    kind, window = frame["kind"].iloc[0], frame["window"].iloc[0]
    what = KIND_NAMES.get(kind, kind) + (f", {window} layers at once" if window > 1 else "")
    return what + (" (approximate: attribution)" if "attribution" in set(frame.get("method", ())) else "")


def _side_by_side(heatmaps: Sequence[go.Heatmap], titles: Sequence[str]) -> go.Figure:
    """Heatmaps with the same rows, each with its colour scale beside it; the last one's says what they tell."""
    figure = make_subplots(cols=len(heatmaps), shared_yaxes=True, horizontal_spacing=0.09, subplot_titles=titles)
    figure.update_annotations(**PANEL_TITLE)
    for column, heatmap in enumerate(heatmaps, start=1):
        figure.add_trace(heatmap, row=1, col=column)
    for heatmap, axis in zip(figure.data, figure.select_xaxes(), strict=True):
        bar = {"x": axis.domain[1] + 0.004, "xpad": 0, "thickness": 9, "outlinewidth": 0, "nticks": 5}
        heatmap.update(xgap=0, ygap=1, colorbar=bar | {"tickfont_size": 11, "title_side": "right"})
        if heatmap is not figure.data[-1]:
            heatmap.colorbar.title.text = ""
    figure.update_xaxes(title="layer", **HEATMAP_AXIS)
    figure.update_yaxes(autorange="reversed", **HEATMAP_AXIS)
    return figure.update_layout(**LAYOUT)
