"""The evidence for a layer to edit."""

from typing import Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.checking import checked
from rome_lens.plots.style import LAYOUT, LEGEND_ABOVE, METHOD_COLOURS, PANEL_TITLE, checked_frame, with_n

_EFFECT = ["effect", "effect_low", "effect_high"]


@runtime_checkable
class Recommended(Protocol):
    """A `LayerRecommendation`."""

    @property
    def table(self) -> pd.DataFrame:
        """The evidence, a row for each layer."""


@checked
def plot_layers(table: pd.DataFrame | Recommended) -> go.Figure:
    """What tracing says of each layer, and above it how well the edits at some layers did, with 95 % intervals.

    Args:
        table: what `recommend_layers` gives, or its `table`.
    """
    table = table if isinstance(table, pd.DataFrame) else table.table
    scores = ["S", "ES", "PS", "NS"]
    ends = [f"{score}_{end}" for score in scores for end in ("low", "high")]
    table = checked_frame(table, ["layer", *_EFFECT, "n", *scores, *ends], "recommend_layers()")
    figure = make_subplots(
        rows=2, shared_xaxes=True, vertical_spacing=0.12, subplot_titles=["scores of edits", "traced effect"]
    )
    figure.update_annotations(**PANEL_TITLE)
    edited = table[table["S"].notna()]
    for i, (score, colour) in enumerate(zip(scores, METHOD_COLOURS[1:], strict=False)):
        _points(figure, edited, score, colour, row=1, width=7 - 1.5 * i)  # so that equal scores are all seen
    _points(figure, table, "effect", METHOD_COLOURS[0], row=2, width=2.0)
    figure.update_xaxes(title="layer", row=2)
    figure.update_yaxes(range=[0, 1.05], title=with_n("score", edited), row=1)
    figure.update_yaxes(title="average indirect effect", row=2)
    return figure.update_layout(**LAYOUT, height=520, legend=LEGEND_ABOVE)


def _points(figure: go.Figure, table: pd.DataFrame, column: str, colour: str, *, row: int, width: float) -> None:
    figure.add_scatter(
        x=table["layer"],
        y=table[column],
        name=column,
        mode="lines+markers",
        line={"color": colour, "width": width},
        marker={"size": 4 + width},
        showlegend=row == 1,
        error_y={
            "array": table[f"{column}_high"] - table[column],
            "arrayminus": table[column] - table[f"{column}_low"],
            "thickness": 1,
            "width": 2,
        },
        customdata=table["n"],
        hovertemplate=f"{column}, layer %{{x}}: %{{y:.3f}}" + (", n = %{customdata}" if row == 1 else ""),
        row=row,
        col=1,
    )
