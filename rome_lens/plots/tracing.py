"""Figures of causal traces."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.plots.style import (
    KIND_COLOURS,
    KIND_NAMES,
    LAYOUT,
    METRIC_NAMES,
    ROLE_COLOURS,
    check_columns,
    plain,
    token_label,
)


def plot_trace(frame: pd.DataFrame, *, answer: str = "answer") -> go.Figure:
    """The paper's heatmap (figure 1): tokens down, layers across, subject tokens starred.

    Purple is the residual state, green MLPs, red attention, blue a head. The colour scale starts at the corrupted
    value: a cell at or below it has the palest colour (at or above it for "kl", where less is more restored). An
    approximate grid is called so in the title.

    Args:
        frame: what `CausalTrace.to_frame` gives: one fact, one kind.
        answer: what the probability is of.

    Raises:
        ValueError: the frame lacks a column, or holds more than one kind.
    """
    check_columns(frame, ["position", "token", "role", "layer", "kind", "window", "indirect_effect"], "to_frame()")
    metric = next((name for name in METRIC_NAMES if name in frame), None)
    if metric is None:
        raise ValueError(f"The frame lacks a column of {', '.join(METRIC_NAMES)}. Give what to_frame() returns.")
    kinds = frame["kind"].unique()
    if len(kinds) != 1:
        raise ValueError(f"The frame holds the kinds {list(kinds)}, expected one. Plot each kind for itself.")
    kind, window = kinds[0], frame["window"].iloc[0]
    grid = frame.pivot(index="position", columns="layer", values=metric)
    tokens = frame.drop_duplicates("position").sort_values("position")
    names = [
        token_label(token) + ("*" if "subject token" in role else "")
        for token, role in zip(tokens["token"], tokens["role"], strict=True)
    ]
    corrupted = (frame[metric] - frame["indirect_effect"]).iloc[0]
    downwards = metric == "kl"
    farthest = grid.min(axis=None) if downwards else grid.max(axis=None)
    if abs(farthest - corrupted) < 1e-6 or (farthest > corrupted) == downwards:
        farthest = corrupted - 1e-6 if downwards else corrupted + 1e-6
    figure = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(),
            x=grid.columns,
            y=grid.index,
            colorscale=KIND_COLOURS.get(kind, "Blues"),
            reversescale=downwards,
            zmin=min(corrupted, farthest),
            zmax=max(corrupted, farthest),
            xgap=1,
            ygap=1,
            colorbar={
                "title": {"text": METRIC_NAMES[metric].format(plain(answer))},
                "thickness": 12,
                "outlinewidth": 0,
                "nticks": 6,
            },
            customdata=[[name] * grid.shape[1] for name in names],
            hovertemplate="%{customdata}, layer %{x}: %{z:.3f}<extra></extra>",
        )
    )
    what = KIND_NAMES.get(kind, kind) + (f", {window} layers at once" if window > 1 else "")
    what += " (approximate: attribution)" if "attribution" in set(frame.get("method", ())) else ""
    bare = {"showline": False, "ticks": "", "zeroline": False}
    figure.update_layout(
        **LAYOUT,
        height=110 + 26 * len(names),
        title={"text": f"Restored {what}", "font": {"size": 15}, "x": 0, "xref": "paper", "xanchor": "left"},
        xaxis={"title": "layer", **bare},
        yaxis={"autorange": "reversed", "tickvals": list(grid.index), "ticktext": names, **bare},
    )
    return figure


def plot_average_effects(frame: pd.DataFrame) -> go.Figure:
    """Average indirect effects by layer, a line with its interval for each token role, a panel for each kind.

    Args:
        frame: what `average_effects` gives.

    Raises:
        ValueError: the frame lacks a column.
    """
    check_columns(frame, ["kind", "role", "layer", "mean", "ci_low", "ci_high", "n"], "average_effects()")
    kinds = list(frame["kind"].unique())
    figure = make_subplots(
        rows=1,
        cols=len(kinds),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[KIND_NAMES.get(kind, kind) for kind in kinds],
    )
    colours = dict(zip(frame["role"].unique(), ROLE_COLOURS, strict=False))
    named: set[object] = set()
    for (kind, role), part in frame.groupby(["kind", "role"], sort=False):
        colour = colours.get(role, "#333333")
        where = {"row": 1, "col": kinds.index(kind) + 1, "legendgroup": role, "mode": "lines"}
        figure.add_scatter(
            x=pd.concat([part["layer"], part["layer"][::-1]]),
            y=pd.concat([part["ci_high"], part["ci_low"][::-1]]),
            fill="toself",
            fillcolor=colour,
            opacity=0.18,
            hoverinfo="skip",
            showlegend=False,
            line={"width": 0, "color": colour},
            **where,
        )
        figure.add_scatter(
            x=part["layer"],
            y=part["mean"],
            name=role,
            showlegend=role not in named,
            line={"color": colour, "width": 2},
            customdata=part["n"],
            hovertemplate=f"{role}, layer %{{x}}: %{{y:.3f}} (n = %{{customdata}})<extra></extra>",
            **where,
        )
        named.add(role)
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="average indirect effect", col=1)
    figure.update_layout(
        **LAYOUT, height=420, legend={"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0, "font": {"size": 12}}
    )
    return figure


def plot_robustness(frame: pd.DataFrame) -> go.Figure:
    """Where the average effect peaks under each setting: the layer across, the settings down, a colour for each role.

    The number beside a point is the rank agreement of its setting's effects with the first setting's.

    Args:
        frame: what `robustness_report` gives.

    Raises:
        ValueError: the frame lacks a column.
    """
    columns = ["corruption", "metric", "window", "peak_role", "peak_layer", "agreement"]
    check_columns(frame, columns, "robustness_report()")
    settings = [f"{row.corruption}, {row.metric}, window {row.window}" for row in frame.itertuples()]
    figure = go.Figure()
    for i, (role, part) in enumerate(frame.assign(setting=settings).groupby("peak_role", sort=False)):
        figure.add_scatter(
            x=part["peak_layer"],
            y=part["setting"],
            mode="markers+text",
            name=role,
            marker={"size": 11, "color": ROLE_COLOURS[i % len(ROLE_COLOURS)]},
            text=[f"{agreement:.2f}" for agreement in part["agreement"]],
            textposition="middle right",
        )
    figure.update_layout(
        **LAYOUT,
        height=130 + 24 * len(frame),
        xaxis={"title": "layer of the largest average effect", "rangemode": "tozero"},
        yaxis={"categoryorder": "array", "categoryarray": settings[::-1]},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    return figure
