"""Figures of effects over many facts."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.checking import checked
from rome_lens.plots.style import (
    KIND_NAMES,
    LAYOUT,
    LEGEND_ABOVE,
    LEGEND_BELOW,
    METHOD_COLOURS,
    PANEL_TITLE,
    ROLE_COLOURS,
    WHISKERS,
    checked_frame,
    with_n,
)

_EFFECTS = ["role", "layer", "mean", "ci_low", "ci_high", "n"]
_SEVERED_NAMES = {"resid": "as it is", "resid, mlp severed": "MLPs severed", "resid, attn severed": "attention severed"}
_SEVERED_COLOURS = {"resid": "#6a51a3", "resid, mlp severed": "#009e73", "resid, attn severed": "#d55e00"}


@checked
def plot_average_effects(frame: pd.DataFrame) -> go.Figure:
    """Average indirect effects by layer, a line with its interval for each token role, a panel for each kind.

    Args:
        frame: what `average_effects` gives.

    Raises:
        ValueError: the frame lacks a column.
    """
    frame = checked_frame(frame, ["kind", *_EFFECTS], "average_effects()")
    colours = dict(zip(frame["role"].unique(), ROLE_COLOURS, strict=False))
    return _lines(frame, panel="kind", line="role", colours=colours)


@checked
def plot_noise_levels(frame: pd.DataFrame | Mapping[str, pd.DataFrame]) -> go.Figure:
    """Average indirect effects by layer, a line for each corruption, a panel for each token role; the first one's
    interval tells how sure they are.

    Args:
        frame: what `average_effects` gives for each corruption, by its name; or put together, with a column
            `corruption`.

    Raises:
        ValueError: the frame lacks a column.
    """
    if isinstance(frame, Mapping):
        frame = pd.concat([part.assign(corruption=name) for name, part in frame.items()] or [pd.DataFrame()])
    frame = checked_frame(frame, ["corruption", *_EFFECTS], "average_effects(), with a corruption,")
    names = list(frame["corruption"].unique())
    colours = dict(zip(names, cycle(("#222222", *METHOD_COLOURS[1:])), strict=False))
    return _lines(frame, panel="role", line="corruption", colours=colours, bands=names[:1])


@checked
def plot_severed(frame: pd.DataFrame, *, role: str = "last subject token") -> go.Figure:
    """The paper's figure 3: what restoring one state brings back, layer by layer, as it is and with MLPs or attentions
    held at their corrupted values: a panel of bars with their intervals for each.

    Args:
        frame: what `average_effects` gives for the kinds "resid", "resid, mlp severed", "resid, attn severed".
        role: which token's effects, where the frame has several roles.

    Raises:
        ValueError: the frame lacks a column, or has several roles and not this one.
    """
    frame = checked_frame(frame, ["kind", *_EFFECTS], "average_effects()")
    if frame["role"].nunique() > 1:
        if role not in set(frame["role"]):
            raise ValueError(f"role is {role!r}, expected one of the frame's: {', '.join(frame['role'].unique())}.")
        frame = frame[frame["role"] == role]
    parts = list(frame.groupby("kind", sort=False))
    names = [_SEVERED_NAMES.get(str(kind), str(kind)) for kind, _ in parts]
    figure = make_subplots(cols=len(parts), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=names)
    figure.update_annotations(**PANEL_TITLE)
    for place, ((kind, part), name) in enumerate(zip(parts, names, strict=True), start=1):
        figure.add_bar(
            x=part["layer"],
            y=part["mean"],
            name=name,
            showlegend=False,
            marker_color=_SEVERED_COLOURS.get(str(kind), "#333333"),
            error_y={
                "symmetric": False,
                "array": part["ci_high"] - part["mean"],
                "arrayminus": part["mean"] - part["ci_low"],
                **WHISKERS,
                "width": 2,
            },
            hovertemplate=f"{kind}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
            row=1,
            col=place,
        )
    figure.update_xaxes(title=with_n("layer", frame))
    figure.update_yaxes(zeroline=True, zerolinewidth=1).update_yaxes(title="average indirect effect", col=1)
    return figure.update_layout(**LAYOUT, bargap=0.25, height=340)


def _lines(
    frame: pd.DataFrame, *, panel: str, line: str, colours: Mapping[str, str], bands: Sequence[str] | None = None
) -> go.Figure:
    """Effects by layer: a panel for each value of one column, a line for each value of another, with the intervals of
    `bands`, or of all.
    """
    panels: Sequence[str] = list(frame[panel].unique())
    figure = make_subplots(
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[KIND_NAMES.get(name, name) for name in panels],
    )
    figure.update_annotations(**PANEL_TITLE)
    named: set[object] = set()
    for (where_to, name), part in frame.groupby([panel, line], sort=False):
        colour = colours.get(str(name), "#333333")
        where = {"row": 1, "col": panels.index(where_to) + 1, "legendgroup": name, "mode": "lines"}
        if bands is None or name in bands:
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
            name=name,
            showlegend=name not in named,
            line={"color": colour, "width": 2},
            customdata=part["n"],
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.3f}} (n = %{{customdata}})<extra></extra>",
            **where,
        )
        named.add(name)
    figure.update_xaxes(title=with_n("layer", frame))
    figure.update_yaxes(title="average indirect effect", col=1)
    return figure.update_layout(**LAYOUT, height=400, legend=LEGEND_BELOW)


@checked
def plot_robustness(frame: pd.DataFrame) -> go.Figure:
    """Where the average effect peaks under each setting: the layer across, the settings down, a colour for each role.

    The number beside a point is the rank agreement of its setting's effects with the first setting's. A metric or
    window that all settings share is not named.

    Args:
        frame: what `robustness_report` gives.

    Raises:
        ValueError: the frame lacks a column.
    """
    columns = ["corruption", "metric", "window", "peak_role", "peak_layer", "agreement"]
    frame = checked_frame(frame, columns, "robustness_report()")
    parts = frame.assign(window=[f"window {window}" for window in frame["window"]])
    told = [name for name in ("corruption", "metric", "window") if name == "corruption" or frame[name].nunique() > 1]
    settings = [", ".join(map(str, row)) for row in parts[told].itertuples(index=False)]
    figure = go.Figure()
    for i, (role, part) in enumerate(frame.assign(setting=settings).groupby("peak_role", sort=False)):
        figure.add_scatter(
            x=part["peak_layer"],
            y=part["setting"],
            mode="markers+text",
            name=str(role),
            showlegend=True,
            marker={"size": 11, "color": ROLE_COLOURS[i % len(ROLE_COLOURS)]},
            text=[f"{agreement:.2f}" for agreement in part["agreement"]],
            textposition="middle right",
            cliponaxis=False,
        )
    figure.update_layout(
        **LAYOUT,
        height=150 + 24 * len(frame),
        xaxis={
            "title": with_n("layer of the peak", frame) + "<br>beside it: agreement with the first",
            "range": [0, 1.2 * frame["peak_layer"].max() + 1],
        },
        yaxis={"categoryorder": "array", "categoryarray": settings[::-1]},
        legend=LEGEND_ABOVE,
    )
    return figure
