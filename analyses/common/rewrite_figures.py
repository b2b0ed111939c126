"""Figures of one rewrite: step by step, and texts before and after it."""

from collections.abc import Mapping
from textwrap import wrap

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rome_lens.checking import check_whole, checked
from rome_lens.plots.style import LAYOUT, LEGEND_BELOW, METHOD_COLOURS, PANEL_TITLE, SIZE, checked_frame, plain

_BEFORE = METHOD_COLOURS[0]
_GROUPS = ("#222222", *METHOD_COLOURS[4:])  # of prompts: other colours than the objects'
_TARGETS = {"new": METHOD_COLOURS[1], "true": METHOD_COLOURS[2]}


@checked
def plot_rewrite(keys: pd.DataFrame, steps: pd.DataFrame, lens: pd.DataFrame, outcome: pd.DataFrame) -> go.Figure:
    """One rewrite in four panels (compare the paper's figure 4).

    a: how like k* each token's key is, and which share of the update it gets; b: the new and the true object's
    probability while what the layer answers to k* goes from v to v*; c: the new object's probability under the
    logit lens, layer by layer; d: both objects after each group of prompts. c and d are before and after the edit.

    Args:
        keys: prompt, token, group, cosine, share: a row for each token of each prompt.
        steps: fraction (of the update), object ("new" or "true"), probability.
        lens: condition, layer, answer_probability: see `ModelComparison.lens`.
        outcome: group, object, condition ("before" or "after"), probability: a row for each prompt.

    Raises:
        ValueError: a frame lacks a column.
    """
    keys = checked_frame(keys, ["prompt", "token", "group", "cosine", "share"], "`rome-lens figure4`, keys.csv,")
    steps = checked_frame(steps, ["fraction", "object", "probability"], "`rome-lens figure4`, steps.csv,")
    lens = checked_frame(lens, ["condition", "layer", "answer_probability"], "compare_models().lens")
    outcome = checked_frame(outcome, ["group", "object", "condition", "probability"], "`rome-lens figure4`")
    titles = [
        "a  key: which tokens get the update",
        "b  value: from v to v*, at the prompt",
        "c  the new object, layer by layer",
        "d  both objects, before (pale) and after",
    ]
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles, horizontal_spacing=0.12, vertical_spacing=0.2)
    figure.update_annotations(**PANEL_TITLE)
    symbols = ("diamond", "circle", "square", "x")
    for i, (group, part) in enumerate(keys.groupby("group", sort=False)):
        figure.add_scatter(
            x=part["cosine"],
            y=part["share"],
            name=f"tokens: {group!s}",
            mode="markers",
            marker={"size": 6, "symbol": symbols[i % 4], "color": _GROUPS[i % 3], "opacity": 0.6},
            text=[f"{token} in {p}" for token, p in zip(part["token"], part["prompt"], strict=True)],
            hovertemplate="%{text}: cosine %{x:.2f}, share %{y:.2f}<extra></extra>",
            row=1,
            col=1,
        )
    for name, part in steps.groupby("object", sort=False):
        colour = _TARGETS[str(name)]
        _curve(figure, part["fraction"], part["probability"], f"{name} object", colour, row=1, col=2)
    for condition, part in lens.groupby("condition", sort=False):
        colour = _BEFORE if condition == "before" else _TARGETS["new"]
        _curve(figure, part["layer"], part["answer_probability"], "new object, before the edit", colour, row=2, col=1)
        figure.data[-1].showlegend = condition == "before"
    for name in _TARGETS:
        for condition in ("before", "after"):
            part = outcome[(outcome["object"] == name) & (outcome["condition"] == condition)]
            means = part.groupby("group", sort=False)["probability"].mean()
            prompts = part.groupby("group", sort=False).size()
            figure.add_bar(
                x=[f"{group!s}<br>(n = {prompts[group]})" for group in means.index],
                y=means,
                showlegend=False,
                marker={"color": _TARGETS[name], "opacity": 0.4 if condition == "before" else 1},
                hovertemplate=f"{name} object, {condition} the edit: %{{y:.3f}}<extra></extra>",
                row=2,
                col=2,
            )
    for (row, col), across, up in (
        ((1, 1), "cosine with k*", "share of the update"),
        ((1, 2), "fraction of the update", "probability"),
        ((2, 1), "layer", "probability (logit lens)"),
        ((2, 2), None, "mean probability"),
    ):
        figure.update_xaxes(title=across, row=row, col=col)
        figure.update_yaxes(title=up, row=row, col=col)
    return figure.update_layout(**LAYOUT, height=620, bargap=0.25, legend=LEGEND_BELOW)


@checked
def plot_texts(frame: pd.DataFrame, *, highlight: Mapping[str, str] | None = None, width: int = 52) -> go.Figure:
    """A table of texts: a row for each prompt, a column for each state of the model (the paper's figure 6).

    Args:
        frame: prompt, model ("before the edit", "rome"), text (with the prompt).
        highlight: words to print in bold, and their colours.
        width: letters in a line.

    Raises:
        ValueError: the frame lacks a column.
    """
    checked_frame(frame, ["prompt", "model", "text"], "`rome-lens figure6_generations`")
    check_whole(width=width)
    columns = [str(model) for model in frame["model"].unique()]
    texts = frame.pivot(index="prompt", columns="model", values="text").loc[frame["prompt"].unique(), columns]
    cells = [[_paragraph(text, width, highlight or {}) for text in texts[column]] for column in columns]
    line = SIZE + 3
    lines = [max(cell.count("<br>") + 1 for cell in row) for row in zip(*cells, strict=True)]
    style = {"align": "left", "font": {"size": SIZE - 1, "color": "#222222"}, "line": {"color": "#dddddd"}}
    figure = go.Figure(
        go.Table(
            header={"values": [f"<b>{plain(column)}</b>" for column in columns], "fill": {"color": "white"}, **style},
            cells={"values": cells, "fill": {"color": "white"}, "height": line, **style},
        )
    )
    return figure.update_layout(**LAYOUT, margin_t=10, height=60 + sum(count * line + 14 for count in lines))


def _curve(figure: go.Figure, x: pd.Series, y: pd.Series, name: str, colour: str, **where: object) -> None:
    figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", line={"color": colour}, marker_size=4, **where)


def _paragraph(text: str, width: int, highlight: Mapping[str, str]) -> str:
    """The text in lines, some words in bold."""
    shown = "<br>".join(plain(line) for line in wrap(text, width))
    for word, colour in highlight.items():
        shown = shown.replace(plain(word), f'<b style="color:{colour}">{plain(word)}</b>')
    return shown
