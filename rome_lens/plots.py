"""Figures from tidy frames. Knows pandas and plotly, and nothing of models."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

KIND_COLOURS = {"resid": "Purples", "mlp": "Greens", "attn": "Reds"}
KIND_NAMES = {"resid": "residual state", "mlp": "MLP", "attn": "attention"}
ROLE_COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#999999", "#cc79a7")  # Okabe and Ito: colour-blind safe
METHOD_COLOURS = ("#999999", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_TEMPLATE = "simple_white"


def plot_trace(frame: pd.DataFrame, *, answer: str = "answer") -> go.Figure:
    """The paper's heatmap (figure 1): tokens down, layers across, subject tokens starred.

    Purple is the residual state, green MLPs, red attention. The colour scale starts at the corrupted probability: a
    cell below it has no colour.

    Args:
        frame: what `CausalTrace.to_frame` gives: one fact, one kind.
        answer: what the probability is of.

    Raises:
        ValueError: the frame lacks a column, or holds more than one kind.
    """
    _check(frame, ["position", "token", "role", "layer", "kind", "window", "prob", "indirect_effect"], "to_frame()")
    kinds = frame["kind"].unique()
    if len(kinds) != 1:
        raise ValueError(f"The frame holds the kinds {list(kinds)}, expected one. Plot each kind for itself.")
    kind, window = kinds[0], frame["window"].iloc[0]
    grid = frame.pivot(index="position", columns="layer", values="prob")
    tokens = frame.drop_duplicates("position").sort_values("position")
    names = [
        t.replace("\n", "⏎").strip() + ("*" if "subject token" in r else "")
        for t, r in zip(tokens["token"], tokens["role"], strict=True)
    ]
    corrupted = (frame["prob"] - frame["indirect_effect"]).iloc[0]
    figure = go.Figure(
        go.Heatmap(
            z=grid.to_numpy(),
            x=grid.columns,
            y=grid.index,
            colorscale=KIND_COLOURS.get(kind, "Blues"),
            zmin=corrupted,
            zmax=max(grid.to_numpy().max(), corrupted + 1e-6),
            colorbar={"title": f"p({answer})", "thickness": 12},
            customdata=[[name] * grid.shape[1] for name in names],
            hovertemplate="%{customdata}, layer %{x}: %{z:.3f}<extra></extra>",
        )
    )
    what = KIND_NAMES.get(kind, kind) + (f", {window} layers at once" if window > 1 else "")
    figure.update_layout(
        template=_TEMPLATE,
        height=120 + 26 * len(names),
        margin={"l": 10, "r": 10, "t": 30, "b": 40},
        title={"text": f"Restored {what}", "font": {"size": 14}},
        xaxis={"title": "layer", "showline": False, "ticks": ""},
        yaxis={
            "autorange": "reversed",
            "tickvals": list(grid.index),
            "ticktext": names,
            "showline": False,
            "ticks": "",
        },
    )
    return figure


def plot_average_effects(frame: pd.DataFrame) -> go.Figure:
    """Average indirect effects by layer, a line with its interval for each token role, a panel for each kind.

    Args:
        frame: what `average_effects` gives.

    Raises:
        ValueError: the frame lacks a column.
    """
    _check(frame, ["kind", "role", "layer", "mean", "ci_low", "ci_high", "n"], "average_effects()")
    kinds = list(frame["kind"].unique())
    figure = make_subplots(
        rows=1, cols=len(kinds), shared_yaxes=True, subplot_titles=[KIND_NAMES.get(kind, kind) for kind in kinds]
    )
    colours = dict(zip(frame["role"].unique(), ROLE_COLOURS, strict=False))
    for (kind, role), part in frame.groupby(["kind", "role"], sort=False):
        band = pd.concat([part["ci_high"], part["ci_low"][::-1]])
        colour = colours.get(role)
        where = {"row": 1, "col": kinds.index(kind) + 1, "legendgroup": role}
        around = pd.concat([part["layer"], part["layer"][::-1]])
        figure.add_scatter(
            x=around,
            y=band,
            fill="toself",
            opacity=0.2,
            hoverinfo="skip",
            showlegend=False,
            line={"width": 0, "color": colour},
            **where,
        )
        figure.add_scatter(
            x=part["layer"],
            y=part["mean"],
            name=role,
            mode="lines",
            showlegend=kind == kinds[0],
            line={"color": colour},
            **where,
        )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="average indirect effect", col=1)
    figure.update_layout(template=_TEMPLATE, height=360, margin={"l": 10, "r": 10, "t": 40, "b": 40})
    return figure


def plot_scores(summary: pd.DataFrame) -> go.Figure:
    """Bars of S, ES, PS and NS with their intervals, side by side for each method (before and after an edit).

    Args:
        summary: what `summarize` gives.

    Raises:
        ValueError: the frame lacks a column.
    """
    _check(summary, ["method", "n"], "summarize()")
    metrics = [metric for metric in ("S", "ES", "PS", "NS") if metric in summary]
    figure = go.Figure()
    for i, (_, row) in enumerate(summary.iterrows()):
        value = [row[metric] for metric in metrics]
        figure.add_bar(
            name=row["method"],
            x=metrics,
            y=value,
            marker_color=METHOD_COLOURS[i % len(METHOD_COLOURS)],
            text=[f"{v:.2f}" for v in value],
            textposition="inside",
            insidetextanchor="start",
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [row[f"{metric}_high"] - row[metric] for metric in metrics],
                "arrayminus": [row[metric] - row[f"{metric}_low"] for metric in metrics],
                "thickness": 1,
            },
        )
    figure.update_layout(
        template=_TEMPLATE,
        barmode="group",
        height=360,
        margin={"l": 10, "r": 10, "t": 30, "b": 40},
        yaxis={"title": "score", "range": [0, 1.05]},
        legend={"orientation": "h", "y": 1.12},
    )
    return figure


def _check(frame: pd.DataFrame, columns: list[str], source: str) -> None:
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(f"The frame lacks the columns {missing}. Give what {source} returns.")
