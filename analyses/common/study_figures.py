"""Figures of what one analysis wrote: layers, covariances, bleed-over, tracing."""

from itertools import product

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from rome_lens.checking import checked
from rome_lens.plots.style import (
    LAYOUT,
    LEGEND_BELOW,
    METHOD_COLOURS,
    PANEL_TITLE,
    SIZE,
    checked_frame,
    log_axis,
    plain,
    with_n,
)

_EDITED = {
    "subject_first": "first subject token",
    "subject_last": "last subject token",
    "subject_first_after_last": "first subsequent token",
    "last": "last token",
}
_MARKS = ("circle", "square", "diamond", "triangle-up")
_BESIDE = 0.06  # of the distance between layers: from mark to mark
_BLEED = {
    "share": "forecast: share of the update",
    "size": "forecast: length of what is added (own prompt: 1)",
    "last_share": "forecast: share of the update at the last token",
    "kl": "measured: KL(before || after), nats",
    "lead_gain": "measured: change of p(true) - p(new)",
    "lead_change": "measured: size of the change of p(true) - p(new)",
}
_TRACED = {"mlp_effect": "effect of the MLPs", "resid_effect": "effect of the state"}


@checked
def plot_tracing_against_editing(frame: pd.DataFrame, correlations: pd.DataFrame) -> go.Figure:
    """Tracing effects at the edit layer across, the edit's scores up: a point for each fact, Spearman's correlation and
    R2 above each panel. EM, PM and NM are the margins that `score_record` gives.

    Args:
        frame: a row for each fact: subject, mlp_effect, resid_effect, S, EM, PM, NM.
        correlations: traced, score, spearman, r2.

    Raises:
        ValueError: a frame lacks a column.
    """
    scores = {"S": "S", "EM": "EM, efficacy", "PM": "PM, paraphrases", "NM": "NM, neighbours"}
    frame = checked_frame(frame, ["subject", *_TRACED, *scores], "`rome-lens tracing_against_editing`, facts.csv,")
    correlations = checked_frame(
        correlations, ["traced", "score", "spearman", "r2"], "`rome-lens tracing_against_editing`"
    )
    pairs = zip(correlations["traced"], correlations["score"], strict=True)
    found = dict(zip(pairs, zip(correlations["spearman"], correlations["r2"], strict=True), strict=True))
    if missing := [pair for pair in product(_TRACED, scores) if pair not in found]:
        raise ValueError(
            f"The correlations of {missing} are missing. Give what `rome-lens tracing_against_editing` returns."
        )
    figure = make_subplots(
        rows=len(_TRACED),
        cols=len(scores),
        shared_yaxes="columns",
        horizontal_spacing=0.07,
        vertical_spacing=0.22,
        subplot_titles=[_agreement(*found[effect, score]) for effect in _TRACED for score in scores],
    )
    figure.update_annotations(font_size=SIZE - 1)
    for row, (effect, across) in enumerate(_TRACED.items(), start=1):
        for column, (score, up) in enumerate(scores.items(), start=1):
            figure.add_scatter(
                x=frame[effect],
                y=frame[score],
                mode="markers",
                marker={"size": 6, "color": METHOD_COLOURS[row], "opacity": 0.6},
                text=list(frame["subject"]),
                hovertemplate="%{text}: %{x:.3f}, %{y:.3f}<extra></extra>",
                showlegend=False,
                row=row,
                col=column,
            )
            figure.update_yaxes(title=up, title_standoff=4, row=row, col=column)
            figure.update_xaxes(title=across, title_standoff=4, nticks=4, row=row, col=column)
    figure.update_layout(**LAYOUT, height=500)
    return figure


def _agreement(spearman: float, r2: float) -> str:
    return "all alike" if pd.isna(spearman) else f"ρ = {spearman:.2f}, R² = {r2:.2f}"


@checked
def plot_convergence(frame: pd.DataFrame) -> go.Figure:
    """How well covariances are estimated as tokens grow, a line for each layer: how far two halves of the text differ,
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
    frame = checked_frame(frame, ["layer", "tokens", *panels], "KeyCovariance.report()")
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
    figure.update_xaxes(title="tokens of text", **log_axis(frame["tokens"]))
    figure.update_yaxes(title="relative difference", **log_axis(frame["half_difference"].dropna()), col=1)
    figure.update_yaxes(rangemode="tozero", col=2)
    figure.update_yaxes(rangemode="tozero", col=3)
    figure.update_layout(**LAYOUT, height=360, legend=LEGEND_BELOW)
    return figure


@checked
def plot_bleed_over(frame: pd.DataFrame, *, forecast: str = "size", change: str = "kl") -> go.Figure:
    """A point for each prompt: how much of the edit was forecast to reach it, and how much changed.

    An axis is logarithmic if all its values are above 0.

    Args:
        frame: what `rome-lens bleed_over` writes: case_id, prompt, and the two columns to draw.
        forecast: the column across.
        change: the column up.

    Raises:
        ValueError: the frame lacks a column.
    """
    frame = checked_frame(frame, ["case_id", "prompt", forecast, change], "`rome-lens bleed_over`")
    figure = go.Figure(
        go.Scatter(
            x=frame[forecast],
            y=frame[change],
            mode="markers",
            marker={"size": 6, "color": METHOD_COLOURS[1], "opacity": 0.5},
            text=list(frame["prompt"]),
            customdata=frame["case_id"],
            hovertemplate="%{text}<br>record %{customdata}: %{x:.3f}, %{y:.3g}<extra></extra>",
        )
    )
    scales = [log_axis(frame[name]) if (frame[name] > 0).all() else {"type": "linear"} for name in (forecast, change)]
    across, up = (plain(_BLEED.get(name, name)) for name in (forecast, change))
    return figure.update_layout(
        **LAYOUT, height=420, xaxis={"title": across, **scales[0]}, yaxis={"title": up, **scales[1]}
    )


@checked
def plot_layers_and_tokens(summary: pd.DataFrame) -> go.Figure:
    """Panels of ES, PS and NS by the edited layer, a line with its intervals for each edited token (paper figure 5).

    A dotted line is the model before the edits. Lines grow thinner and marks stand beside each other, so that equal
    scores are all seen.

    Args:
        summary: what `summarize` gives, with the columns token ("subject_last", ...; "" before the edits) and layer.

    Raises:
        ValueError: the frame lacks a column.
    """
    panels = {"ES": "efficacy (ES)", "PS": "paraphrases (PS)", "NS": "neighbourhood (NS)"}
    needed = [f"{metric}{end}" for metric in panels for end in ("", "_low", "_high")]
    summary = checked_frame(summary, ["token", "layer", *needed], "summarize(), with token and layer,")
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(panels.values()), horizontal_spacing=0.06)
    edited = summary[summary["token"] != ""].sort_values("layer")
    layers = edited["layer"].unique()
    beside = _BESIDE * min(np.diff(layers), default=1)
    for column, metric in enumerate(panels, start=1):
        where = {"row": 1, "col": column, "showlegend": column == 1}
        for i, (token, part) in enumerate(edited.groupby("token", sort=False)):
            name = _EDITED.get(str(token), str(token))
            above, below = part[f"{metric}_high"] - part[metric], part[metric] - part[f"{metric}_low"]
            figure.add_scatter(
                x=part["layer"] + beside * (i - (edited["token"].nunique() - 1) / 2),
                y=part[metric],
                customdata=part["layer"],
                name=name,
                legendgroup=name,
                mode="lines+markers",
                line={"color": METHOD_COLOURS[1 + i % (len(METHOD_COLOURS) - 1)], "width": max(2, 6 - 2 * i)},
                marker={"size": 8, "symbol": _MARKS[i % len(_MARKS)]},
                error_y={"array": above, "arrayminus": below, "thickness": 1.2, "width": 3},
                hovertemplate=f"{name}, layer %{{customdata}}: %{{y:.3f}}<extra></extra>",
                **where,
            )
        for value in summary.loc[summary["token"] == "", metric]:
            figure.add_scatter(
                x=[edited["layer"].min(), edited["layer"].max()],
                y=[value, value],
                name="before the edits",
                legendgroup="base",
                mode="lines",
                line={"color": METHOD_COLOURS[0], "width": 2, "dash": "dot"},
                hovertemplate="before the edits: %{y:.3f}<extra></extra>",
                **where,
            )
    figure.update_annotations(**PANEL_TITLE)
    figure.update_xaxes(title=with_n("edited layer", edited), tickvals=layers)
    figure.update_yaxes(range=[0, 1.05])
    figure.update_yaxes(title="score", col=1)
    figure.update_layout(**LAYOUT, height=400, legend=LEGEND_BELOW)
    return figure


def plot_near_subjects(frame: pd.DataFrame) -> go.Figure:
    """A point for each edit: how far the next token moved at subjects near the edited one, on the average, by method.

    Args:
        frame: what `rome-lens near_subjects` writes. Methods that change nothing anywhere are left out.

    Raises:
        ValueError: the frame lacks a column.
    """
    frame = checked_frame(frame, ["case_id", "method", "near_kl", "edited"], "`rome-lens near_subjects`")
    figure = go.Figure()
    edits = frame.groupby(["method", "case_id"], sort=False).agg({"near_kl": "mean", "edited": "first"}).reset_index()
    edits = edits[edits["near_kl"] > 0]
    for method, part in edits.groupby("method", sort=False):
        figure.add_box(
            x=part["near_kl"],
            name=str(method),
            boxpoints="all",
            marker={"color": _colour(str(method)), "size": 5},
            text=list(part["edited"]),
            hovertemplate="%{text}: %{x:.3g}<extra></extra>",
        )
    across = {"title": f"KL at near subjects, nats (n = {edits['case_id'].nunique()})", **log_axis(edits["near_kl"])}
    down = {"autorange": "reversed", "ticks": ""}
    height = 80 + 30 * edits["method"].nunique()
    return figure.update_layout(**LAYOUT, height=height, showlegend=False, xaxis=across, yaxis=down)


def plot_reach(frame: pd.DataFrame, method: str = "rome") -> go.Figure:
    """A point for each near subject: how strongly the plain edit acts there, told from its key, and what changed.

    Args:
        frame: what `rome-lens near_subjects` writes.
        method: whose edits, without, with a list and with auto.

    Raises:
        ValueError: the frame lacks a column, or the method.
    """
    frame = checked_frame(frame, ["method", "reach", "near_kl", "edited", "subject"], "`rome-lens near_subjects`")
    parts = {suffix: frame[frame["method"] == method + suffix] for suffix in ("", " +list", " +auto")}
    if parts[""].empty:
        raise ValueError(f"There are no edits by {method!r}, only by {', '.join(frame['method'].unique())}.")
    figure = go.Figure()
    for suffix, part in parts.items():
        part = part[(part["reach"] > 0) & (part["near_kl"] > 0)]
        figure.add_scatter(
            x=part["reach"],
            y=part["near_kl"],
            name=f"{method + suffix} (n = {len(part)})",
            mode="markers",
            marker={"color": _colour(method + suffix), "size": 5, "opacity": 0.6},
            text=[f"{edited} at {subject}" for edited, subject in zip(part["edited"], part["subject"], strict=True)],
            hovertemplate="%{text}: %{x:.3g}, %{y:.3g}<extra></extra>",
        )
    shown = pd.concat(parts.values())
    across = {
        "title": "forecast: how strongly the plain edit acts (its own prompt: 1)",
        **log_axis(shown["reach"][shown["reach"] > 0]),
    }
    up = {"title": "KL(before || after), nats", **log_axis(shown["near_kl"][shown["near_kl"] > 0])}
    return figure.update_layout(**LAYOUT, height=420, legend=LEGEND_BELOW, xaxis=across, yaxis=up)


def _colour(variant: str) -> str:
    """Of edits as they are, with a list, with auto."""
    return METHOD_COLOURS[variant.count(" +") + variant.count(" +auto")]


def plot_forensics(frame: pd.DataFrame, threshold: float) -> go.Figure:
    """A point for each copy of a model: the score of its most suspicious layer, by how the copy was made.

    Args:
        frame: what `rome-lens forensics` writes: kind, copy, score.
        threshold: the score above which a copy is suspected; a dotted line.

    Raises:
        ValueError: the frame lacks a column.
    """
    frame = checked_frame(frame, ["kind", "copy", "score"], "`rome-lens forensics`, copies.csv,")
    figure = go.Figure()
    for kind, part in frame.groupby("kind", sort=False):
        figure.add_box(
            y=part["score"],
            name=str(kind),
            boxpoints="all",
            marker={"color": METHOD_COLOURS[0 if kind in ("unedited", "fine-tuned") else 1], "size": 5},
            text=list(part["copy"]),
            hovertemplate="%{text}: %{y:.3g}<extra></extra>",
        )
    figure.add_hline(y=threshold, line={"dash": "dot", "color": "#222222", "width": 1})
    figure.update_layout(**LAYOUT, height=420, showlegend=False, yaxis_title="score of the most suspicious layer")
    return figure
