"""Figures of effects over many facts."""

from collections.abc import Sequence
from itertools import cycle

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.checking import checked
from rome_lens.plots.style import (
    KIND_NAMES,
    LAYOUT,
    LEGEND_BELOW,
    METHOD_COLOURS,
    PANEL_TITLE,
    ROLE_COLOURS,
    checked_frame,
    with_n,
)


@checked
def plot_average_effects(frame: pd.DataFrame, *, panel: str = "kind", line: str = "role") -> go.Figure:
    """Average indirect effects by layer.

    Args:
        frame: what `average_effects` gives; or several of them put together, with a column that tells them apart
            (`pd.concat([frame.assign(corruption=name), ...])`).
        panel: column of which each value has a panel.
        line: column of which each value has a line. Roles have intervals; of other lines, which may lie close together,
            the first has one.
    """
    frame = checked_frame(frame, [panel, line, "layer", "mean", "ci_low", "ci_high", "n"], "average_effects()")
    panels: Sequence[str] = list(frame[panel].unique())
    names = list(frame[line].unique())
    palette = (*ROLE_COLOURS, *["#333333"] * len(names)) if line == "role" else ("#222222", *METHOD_COLOURS[1:])
    colours = dict(zip(names, cycle(palette), strict=False))
    figure = make_subplots(
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[KIND_NAMES.get(name, name) for name in panels],
    )
    figure.update_annotations(**PANEL_TITLE)
    named: set[object] = set()
    for (where_to, name), part in frame.groupby([panel, line], sort=False):
        where = {"row": 1, "col": panels.index(where_to) + 1, "legendgroup": name, "mode": "lines"}
        if line == "role" or name == names[0]:
            figure.add_scatter(
                x=pd.concat([part["layer"], part["layer"][::-1]]),
                y=pd.concat([part["ci_high"], part["ci_low"][::-1]]),
                fill="toself",
                fillcolor=colours[name],
                opacity=0.18,
                hoverinfo="skip",
                showlegend=False,
                line={"width": 0, "color": colours[name]},
                **where,
            )
        figure.add_scatter(
            x=part["layer"],
            y=part["mean"],
            name=name,
            showlegend=name not in named,
            line={"color": colours[name], "width": 2},
            customdata=part["n"],
            hovertemplate=f"{name}, layer %{{x}}: %{{y:.3f}} (n = %{{customdata}})<extra></extra>",
            **where,
        )
        named.add(name)
    figure.update_xaxes(title=with_n("layer", frame))
    figure.update_yaxes(title="average indirect effect", col=1)
    return figure.update_layout(**LAYOUT, height=400, legend=LEGEND_BELOW)
