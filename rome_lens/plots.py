"""Figures from tidy frames. Knows pandas and plotly, and nothing of models."""

from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

KIND_COLOURS = {"resid": "Purples", "mlp": "Greens", "attn": "Reds"}
KIND_NAMES = {"resid": "residual state", "mlp": "MLP", "attn": "attention", "head": "head"}
METRIC_NAMES = {"prob": "p({})", "logprob": "log p({})", "logit_diff": "logit difference", "kl": "KL from clean"}
ROLE_COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#999999", "#cc79a7")  # Okabe and Ito: colour-blind safe
METHOD_COLOURS = ("#b3b3b3", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LAYOUT = {
    "template": "simple_white",
    "font": {"family": _FONT, "size": 13},
    "margin": {"l": 10, "r": 10, "t": 44, "b": 10},  # axes make room for their labels by themselves
}


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
    _check(frame, ["position", "token", "role", "layer", "kind", "window", "indirect_effect"], "to_frame()")
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
        _token_label(token) + ("*" if "subject token" in role else "")
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
                "title": {"text": METRIC_NAMES[metric].format(_plain(answer))},
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
        **_LAYOUT,
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
    _check(frame, ["kind", "role", "layer", "mean", "ci_low", "ci_high", "n"], "average_effects()")
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
        **_LAYOUT, height=420, legend={"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0, "font": {"size": 12}}
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
    _check(frame, columns, "robustness_report()")
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
        **_LAYOUT,
        height=130 + 24 * len(frame),
        xaxis={"title": "layer of the largest average effect", "rangemode": "tozero"},
        yaxis={"categoryorder": "array", "categoryarray": settings[::-1]},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
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
    _check(summary, [f"{metric}_{end}" for metric in metrics for end in ("low", "high")], "summarize()")
    figure = go.Figure()
    for i, (_, row) in enumerate(summary.iterrows()):
        value = [row[metric] for metric in metrics]
        figure.add_bar(
            name=_plain(row["method"]),
            x=metrics,
            y=value,
            marker_color=METHOD_COLOURS[i % len(METHOD_COLOURS)],
            texttemplate="%{y:.2f}",
            textposition="inside",
            insidetextanchor="start",
            textangle=0,
            constraintext="none",
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [row[f"{metric}_high"] - row[metric] for metric in metrics],
                "arrayminus": [row[metric] - row[f"{metric}_low"] for metric in metrics],
                "thickness": 1.2,
                "color": "#333333",
            },
            customdata=[[row[f"{metric}_low"], row[f"{metric}_high"], row["n"]] for metric in metrics],
            hovertemplate="%{x} %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}",
        )
    figure.update_layout(
        **_LAYOUT,
        barmode="group",
        bargap=0.3,
        height=360,
        xaxis={"ticks": "", "tickfont": {"size": 14}},
        yaxis={"title": "score", "range": [0, 1.02], "showgrid": True, "gridcolor": "#eeeeee"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def plot_sequence(frame: pd.DataFrame) -> go.Figure:
    """What piles up with the edits: a panel for each score, perplexity and norm growth, a line for each method.

    A dotted line is the model before the first edit on the same records; error bars are those of `summarize`.

    Args:
        frame: the `checkpoints` of one or more EditSequences, put together, with a column `method`.

    Raises:
        ValueError: the frame lacks a column.
    """
    _check(frame, ["method", "edits", "perplexity", "norm_growth", "ES"], "EditSequence.checkpoints, with a method,")
    panels = {
        "ES": "efficacy (ES)",
        "PS": "paraphrases (PS)",
        "NS": "neighbourhood (NS)",
        "perplexity": "perplexity",
        "norm_growth": "norm growth |W - W0| / |W0|",
    }
    panels = {column: title for column, title in panels.items() if column in frame and frame[column].notna().any()}
    figure = make_subplots(rows=2, cols=3, subplot_titles=list(panels.values()), vertical_spacing=0.18)
    for i, (method, part) in enumerate(frame.groupby("method", sort=False)):
        colour = METHOD_COLOURS[1 + i % (len(METHOD_COLOURS) - 1)]
        for place, column in enumerate(panels):
            where = {"row": 1 + place // 3, "col": 1 + place % 3, "legendgroup": str(method)}
            bars = {}
            if f"{column}_low" in part:
                above, below = part[f"{column}_high"] - part[column], part[column] - part[f"{column}_low"]
                bars = {"error_y": {"array": above, "arrayminus": below, "thickness": 1, "width": 2}}
            figure.add_scatter(
                x=part["edits"],
                y=part[column],
                name=_plain(str(method)),
                mode="lines+markers",
                line={"color": colour, "width": 2},
                showlegend=place == 0,
                hovertemplate=f"{_plain(str(method))}, %{{x}} edits: %{{y:.4g}}<extra></extra>",
                **bars,
                **where,
            )
            if f"base_{column}" in part:
                figure.add_scatter(
                    x=part["edits"],
                    y=part[f"base_{column}"],
                    name="before the first edit",
                    mode="lines",
                    line={"color": METHOD_COLOURS[0], "width": 2, "dash": "dot"},
                    showlegend=place == 0 and i == 0,
                    hovertemplate="before the first edit: %{y:.4g}<extra></extra>",
                    **(where | {"legendgroup": "base"}),
                )
    for place, column in enumerate(panels):
        where = {"row": 1 + place // 3, "col": 1 + place % 3}
        if column == "perplexity":
            figure.update_yaxes(type="log", **where)
        else:
            figure.update_yaxes(range=[0, 1.05] if column in ("ES", "PS", "NS") else None, rangemode="tozero", **where)
        figure.update_xaxes(title="edits", rangemode="tozero", **where)
    figure.update_layout(
        **_LAYOUT, height=620, legend={"orientation": "h", "y": 1.08, "yanchor": "bottom", "x": 0, "xanchor": "left"}
    )
    return figure


def plot_bleed_over(frame: pd.DataFrame, *, forecast: str = "size", change: str = "kl") -> go.Figure:
    """A point for each prompt: how much of the edit was forecast to reach it, and how much changed.

    An axis is logarithmic if all its values are above 0.

    Args:
        frame: what `analyses.bleed_over` writes: case_id, prompt, and the two columns to draw.
        forecast: the column across.
        change: the column up.

    Raises:
        ValueError: the frame lacks a column.
    """
    _check(frame, ["case_id", "prompt", forecast, change], "analyses.bleed_over")
    figure = go.Figure(
        go.Scatter(
            x=frame[forecast],
            y=frame[change],
            mode="markers",
            marker={"size": 6, "color": METHOD_COLOURS[1], "opacity": 0.5},
            text=[_plain(prompt) for prompt in frame["prompt"]],
            customdata=frame["case_id"],
            hovertemplate="%{text}<br>record %{customdata}: %{x:.3f}, %{y:.3g}<extra></extra>",
        )
    )
    scales = {name: "log" if (frame[name] > 0).all() else "linear" for name in (forecast, change)}
    figure.update_layout(
        **_LAYOUT,
        height=420,
        xaxis={"title": f"forecast: {_plain(forecast)}", "type": scales[forecast]},
        yaxis={"title": f"measured: {_plain(change)}", "type": scales[change]},
    )
    return figure


def plot_comparison(lens: pd.DataFrame, contributions: pd.DataFrame) -> go.Figure:
    """Two panels by layer, means over prompts: the answer's probability under the logit lens before and after, and how
    much attention and MLP outputs moved.

    Args:
        lens: `ModelComparison.lens`.
        contributions: `ModelComparison.contributions`.

    Raises:
        ValueError: a frame lacks a column.
    """
    _check(lens, ["condition", "layer", "answer_probability"], "compare_models().lens")
    _check(contributions, ["kind", "layer", "change"], "compare_models().contributions")
    answers = set(lens.get("answer", ()))
    answer = _plain(answers.pop().strip()) if len(answers) == 1 else "top token after"
    figure = make_subplots(
        cols=2,
        horizontal_spacing=0.12,
        subplot_titles=[f"logit lens: p({answer})", "relative change of outputs"],
    )
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
    figure.update_xaxes(title="layer")
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(**_LAYOUT, height=380, legend={"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0})
    return figure


def _token_label(token: str) -> str:
    return _plain(token.replace("\n", "⏎").strip() or "␣")


def _plain(text: str) -> str:
    """The text as plotly shows it: a tag-like token such as <|endoftext|> would be left out otherwise."""
    return escape(str(text), quote=False)


def _check(frame: pd.DataFrame, columns: list[str], source: str) -> None:
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(f"The frame lacks the columns {missing}. Give what {source} returns.")
