"""Figures hold what their frames say."""

from itertools import product

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from analyses.common.rewrite_figures import plot_texts
from analyses.common.study_figures import plot_bleed_over, plot_convergence, plot_layers_and_tokens
from analyses.figure3_severed import plot_severed
from rome_lens.plots import (
    plot_average_effects,
    plot_comparison,
    plot_effect_maps,
    plot_scores,
    plot_sequence,
    plot_trace,
    plot_traces,
)
from rome_lens.plots.style import ROLE_COLOURS

TOKENS = ["The", " Eiffel", " Tower", " is", " in"]
ROLES = [
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "last token",
]
CORRUPTED = 0.125
ENDS = {"": 0.0, "_low": -0.02, "_high": 0.05}
LAYERS = 4


@pytest.fixture
def trace() -> pd.DataFrame:
    """Five tokens by four layers, in no order: p = 0.125 + (4 position + layer) / 32."""
    rows = [
        (p, TOKENS[p], ROLES[p], layer, "mlp", 10, CORRUPTED + (4 * p + layer) / 32, (4 * p + layer) / 32)
        for p, layer in product(range(len(TOKENS)), range(LAYERS))
    ]
    columns = ["position", "token", "role", "layer", "kind", "window", "prob", "indirect_effect"]
    return pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=0)


@pytest.fixture
def effects() -> pd.DataFrame:
    """Two kinds, three roles, four layers; the mean rises by 0.01 a layer, a role apart by 0.1."""
    rows = [
        (kind, role, layer, mean := 0.1 * r + 0.01 * layer, mean - 0.05, mean + 0.02, 7)
        for kind, (r, role), layer in product(["resid", "attn"], enumerate(ROLES[:3]), range(LAYERS))
    ]
    return pd.DataFrame(rows, columns=["kind", "role", "layer", "mean", "ci_low", "ci_high", "n"])


@pytest.fixture
def summary() -> pd.DataFrame:
    """Before and after an edit."""
    rows = []
    for method, value in {"base": 0.25, "rome": 0.75}.items():
        row: dict[str, object] = {"method": method, "n": 11}
        for metric in ("S", "ES", "EM", "PS", "PM", "NS", "NM"):
            row |= {metric: value, f"{metric}_low": value - 0.125, f"{metric}_high": value + 0.0625}
        rows.append(row)
    return pd.DataFrame(rows)


@pytest.fixture
def sequence() -> pd.DataFrame:
    """Two methods at 0, 10 and 20 edits."""
    rows = [
        (method, edits, 20.0 + edits * i, 0.01 * edits * i, 0.5 * i, 0.5 * i - 0.1, 0.5 * i + 0.2, 0.25)
        for i, method in enumerate(["rome", "<b>ft"], start=1)
        for edits in (0, 10, 20)
    ]
    columns = ["method", "edits", "perplexity", "norm_growth", "ES", "ES_low", "ES_high", "base_ES"]
    return pd.DataFrame(rows, columns=columns)


def labels(figure: go.Figure) -> list[str]:
    return list(figure.layout.yaxis.ticktext)


def test_trace_shows_every_probability_at_its_place(trace: pd.DataFrame) -> None:
    (heatmap,) = plot_trace(trace).data

    expected = CORRUPTED + np.arange(len(TOKENS) * LAYERS).reshape(len(TOKENS), LAYERS) / 32
    assert np.array_equal(heatmap.z, expected)
    assert list(heatmap.x) == [0, 1, 2, 3]
    assert list(heatmap.y) == [0, 1, 2, 3, 4]


def test_trace_colours_start_at_the_corrupted_probability(trace: pd.DataFrame) -> None:
    (heatmap,) = plot_trace(trace).data

    assert heatmap.zmin == CORRUPTED
    assert heatmap.zmax == trace["prob"].max()


def test_trace_without_any_effect_still_has_a_scale(trace: pd.DataFrame) -> None:
    (heatmap,) = plot_trace(trace.assign(prob=CORRUPTED, indirect_effect=0.0)).data

    assert heatmap.zmin == CORRUPTED < heatmap.zmax


def test_trace_stars_exactly_the_subject(trace: pd.DataFrame) -> None:
    figure = plot_trace(trace)

    assert labels(figure) == ["The*", "Eiffel*", "Tower*", "is", "in"]
    assert list(figure.layout.yaxis.tickvals) == [0, 1, 2, 3, 4]
    assert figure.layout.yaxis.autorange == "reversed"


def test_trace_keeps_tokens_with_the_same_text_apart(trace: pd.DataFrame) -> None:
    figure = plot_trace(trace.assign(token="the"))

    assert labels(figure) == ["the*", "the*", "the*", "the", "the"]
    assert len(figure.data[0].z) == len(TOKENS)


@pytest.mark.parametrize(
    ("token", "label"),
    [("<|endoftext|>", "&lt;|endoftext|&gt;*"), ("\n", "⏎*"), ("  ", "␣*"), (" R&D", "R&amp;D*"), (" été", "été*")],
)
def test_trace_shows_odd_tokens(trace: pd.DataFrame, token: str, label: str) -> None:
    assert labels(plot_trace(trace.replace({"token": {"The": token}})))[0] == label


@pytest.mark.parametrize(
    ("kind", "darkest", "title"),
    [
        ("resid", "rgb(63,0,125)", "Restored residual state"),
        ("mlp", "rgb(0,68,27)", "Restored MLP, 10 layers at once"),
        ("attn", "rgb(103,0,13)", "Restored attention, 10 layers at once"),
    ],
)
def test_trace_has_the_colour_and_the_name_of_its_kind(
    trace: pd.DataFrame, kind: str, darkest: str, title: str
) -> None:
    figure = plot_trace(trace.assign(kind=kind, window=1 if kind == "resid" else 10))

    assert figure.data[0].colorscale[-1][1] == darkest
    assert figure.layout.title.text == title


def test_trace_names_the_answer(trace: pd.DataFrame) -> None:
    assert plot_trace(trace, answer="Paris").data[0].colorbar.title.text == "p(Paris)"
    assert plot_trace(trace, answer="<b>").data[0].colorbar.title.text == "p(&lt;b&gt;)"


def test_trace_grows_with_the_prompt(trace: pd.DataFrame) -> None:
    short = trace[trace["position"] < 2]

    assert plot_trace(trace).layout.height - plot_trace(short).layout.height == 3 * 26


def test_trace_refuses_mixed_kinds(trace: pd.DataFrame) -> None:
    mixed = pd.concat([trace, trace.assign(kind="attn")])

    with pytest.raises(ValueError, match=r"kinds \['mlp', 'attn'\], expected one"):
        plot_trace(mixed)


def test_traces_stand_side_by_side_with_the_cells_of_each_alone(trace: pd.DataFrame) -> None:
    both = pd.concat([trace, trace.assign(kind="attn")])
    figure = plot_traces(both, answer="Paris")

    assert [note.text for note in figure.layout.annotations] == [
        "MLP, 10 layers at once",
        "attention, 10 layers at once",
    ]
    for panel in figure.data:
        assert np.array_equal(panel.z, plot_trace(trace).data[0].z)
    assert [panel.colorbar.title.text for panel in figure.data] == ["", "p(Paris)"]
    assert labels(figure) == labels(plot_trace(trace))


def test_effect_maps_start_at_nothing(effects: pd.DataFrame) -> None:
    figure = plot_effect_maps(effects)

    for panel, (_, part) in zip(figure.data, effects.groupby("kind", sort=False), strict=True):
        assert list(panel.y) == ROLES[:3]
        assert np.array_equal(panel.z.ravel(), part["mean"])
        assert (panel.zmin, panel.zmax) == (0, part["mean"].max())


def test_severed_effects_are_bars_with_their_intervals(effects: pd.DataFrame) -> None:
    figure = plot_severed(effects[effects["role"] == ROLES[0]].replace({"kind": {"attn": "resid, mlp severed"}}))

    assert [bar.name for bar in figure.data] == ["as it is", "MLPs severed"]
    assert figure.data[0].error_y.array == pytest.approx([0.02] * LAYERS)
    assert figure.data[0].error_y.arrayminus == pytest.approx([0.05] * LAYERS)


def test_noise_levels_are_lines_in_panels_of_roles(effects: pd.DataFrame) -> None:
    figure = plot_average_effects(effects.rename(columns={"kind": "corruption"}), panel="role", line="corruption")

    assert [note.text for note in figure.layout.annotations] == ROLES[:3]
    assert [line.name for line in figure.data if line.showlegend] == ["resid", "attn"]
    assert [line.name for line in figure.data if line.fill is None] == ["resid"] * 3 + ["attn"] * 3
    assert len(figure.data) == 6 + 3, "only the first corruption has intervals"


def test_texts_are_shown_as_text_with_their_words_marked() -> None:
    rows = [("p", model, f"<b>p</b> is in {place}") for model, place in (("before", "Paris"), ("after", "Rome"))]
    figure = plot_texts(pd.DataFrame(rows, columns=["prompt", "model", "text"]), highlight={"Rome": "#0072b2"})

    before, after = figure.data[0].cells["values"]
    assert before[0] == "&lt;b&gt;p&lt;/b&gt; is in Paris"
    assert after[0].endswith('<b style="color:#0072b2">Rome</b>')


def test_average_effects_have_a_panel_for_each_kind_and_a_line_for_each_role(effects: pd.DataFrame) -> None:
    figure = plot_average_effects(effects)

    assert [note.text for note in figure.layout.annotations] == ["residual state", "attention"]
    lines = [line for line in figure.data if line.fill is None]
    assert [(line.xaxis, line.name) for line in lines] == list(product(["x", "x2"], ROLES[:3]))
    for line, (_, part) in zip(lines, effects.groupby(["kind", "role"], sort=False), strict=True):
        assert list(line.x) == list(part["layer"])
        assert list(line.y) == list(part["mean"])


def test_average_effects_have_bands_from_low_to_high(effects: pd.DataFrame) -> None:
    bands = [band for band in plot_average_effects(effects).data if band.fill == "toself"]

    assert len(bands) == 6
    for band, (_, part) in zip(bands, effects.groupby(["kind", "role"], sort=False), strict=True):
        assert list(band.x) == [0, 1, 2, 3, 3, 2, 1, 0]
        assert list(band.y) == [*part["ci_high"], *part["ci_low"][::-1]]
        assert band.mode == "lines"


def test_average_effects_name_and_colour_each_role_once(effects: pd.DataFrame) -> None:
    only_later = effects[(effects["kind"] != "resid") | (effects["role"] != ROLES[1])]
    figure = plot_average_effects(only_later)

    shown = [line.name for line in figure.data if line.showlegend]
    assert sorted(shown) == sorted(ROLES[:3])
    colours = {(line.name, line.line.color) for line in figure.data if line.fill is None}
    assert len(colours) == 3
    assert {colour for _, colour in colours} == set(ROLE_COLOURS[:3])


def test_average_effects_of_one_kind_have_one_panel(effects: pd.DataFrame) -> None:
    figure = plot_average_effects(effects[effects["kind"] == "attn"])

    assert {line.xaxis for line in figure.data} == {"x"}


def test_average_effects_draw_roles_beyond_the_palette(effects: pd.DataFrame) -> None:
    many = pd.concat([effects.assign(role=f"role {i}") for i in range(8)]).drop_duplicates(["kind", "role", "layer"])

    assert len(plot_average_effects(many).data) == 2 * 2 * 8


def test_scores_have_bars_with_intervals(summary: pd.DataFrame) -> None:
    before, after = plot_scores(summary).data

    assert (before.name, after.name) == ("base", "rome")
    assert before.marker.color != after.marker.color
    for bar, value in ((before, 0.25), (after, 0.75)):
        assert list(bar.x) == ["S", "ES", "PS", "NS"]
        assert list(bar.y) == [value] * 4
        assert list(bar.error_y.array) == [0.0625] * 4
        assert list(bar.error_y.arrayminus) == [0.125] * 4


def test_scores_leave_out_what_the_records_could_not_tell(summary: pd.DataFrame) -> None:
    (before, _) = plot_scores(summary.drop(columns=["S", "S_low", "S_high", "NS", "NS_low", "NS_high"])).data

    assert list(before.x) == ["ES", "PS"]


def test_layers_and_tokens_have_a_panel_for_each_success_and_a_line_for_each_token() -> None:
    places = [("", -1), ("subject_last", 4), ("subject_first", 2), ("subject_last", 2), ("subject_first", 4)]
    rows = [
        {"token": token, "layer": layer}
        | {f"{metric}{end}": 0.1 * i + by for metric in ("ES", "PS", "NS") for end, by in ENDS.items()}
        for i, (token, layer) in enumerate(places)
    ]
    figure = plot_layers_and_tokens(pd.DataFrame(rows))

    assert [note.text for note in figure.layout.annotations] == [
        "efficacy (ES)",
        "paraphrases (PS)",
        "neighbourhood (NS)",
    ]
    legend = ["first subject token", "last subject token", "before the edits"]
    assert [line.name for line in figure.data] == legend * 3
    assert [line.name for line in figure.data if line.showlegend] == legend
    first, last, base = figure.data[:3]
    assert (list(first.customdata), list(first.y)) == ([2, 4], pytest.approx([0.2, 0.4]))
    assert (list(last.customdata), list(last.y)) == ([2, 4], pytest.approx([0.3, 0.1]))
    assert (list(base.x), list(base.y)) == ([2, 4], [0, 0])
    assert first.x[0] < 2 < last.x[0] < first.x[1] < 4
    assert list(first.error_y.array) == pytest.approx([0.05] * 2)
    assert list(first.error_y.arrayminus) == pytest.approx([0.02] * 2)


def test_many_edits_are_on_a_logarithmic_axis_and_other_scores_have_panels(sequence: pd.DataFrame) -> None:
    many = sequence.assign(edits=sequence["edits"] * 50).rename(columns={"ES": "efficacy", "base_ES": "base_efficacy"})
    figure = plot_sequence(many)
    assert figure.layout.annotations[0].text == "efficacy"
    assert {axis.type for axis in figure.select_xaxes() if axis.title.text} == {"log"}
    assert all(0 not in line.x for line in figure.data)
    before = many.loc[(many["method"] == "rome") & (many["edits"] == 0), "perplexity"].item()
    dotted = [line for line in figure.data if line.line.dash == "dot" and set(line.y) == {before}]
    assert [line.name for line in dotted] == ["before the first edit"] * 2  # of each method
    with pytest.raises(ValueError, match="has none of the scores ES, PS, NS, efficacy"):
        plot_sequence(sequence.drop(columns="ES"))


def test_a_sequence_with_a_users_scores_has_a_panel_for_each_of_them(sequence: pd.DataFrame) -> None:
    own = sequence.rename(columns={f"ES{end}": f"loss{end}" for end in ("", "_low", "_high")})
    own = own.assign(loss=5.0).drop(columns="base_ES")
    figure = plot_sequence(own)
    assert figure.layout.annotations[0].text == "loss"
    assert figure.layout.yaxis.range is None  # a score above 1 is no share


def test_a_sequence_has_a_panel_for_each_measure_and_a_line_for_each_method(sequence: pd.DataFrame) -> None:
    figure = plot_sequence(sequence)

    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["efficacy (ES)", "perplexity", "norm growth |W - W0| / |W0|"]
    lines = [line for line in figure.data if line.line.dash is None]
    assert [line.name for line in lines] == ["rome"] * 3 + ["&lt;b&gt;ft"] * 3
    assert [line.name for line in figure.data if line.showlegend] == ["rome", "before the first edit", "&lt;b&gt;ft"]
    for line, column in zip(lines, ["ES", "perplexity", "norm_growth"] * 2, strict=True):
        part = sequence[sequence["method"] == ("rome" if line.name == "rome" else "<b>ft")]
        assert list(line.x) == [0, 10, 20]
        assert list(line.y) == list(part[column])
    assert list(lines[0].error_y.array) == pytest.approx([0.2] * 3)
    assert list(lines[0].error_y.arrayminus) == pytest.approx([0.1] * 3)
    assert lines[1].error_y.array is None
    dotted = [line for line in figure.data if line.line.dash == "dot"]
    assert [list(line.y) for line in dotted] == [[0.25] * 3] * 2
    assert figure.layout.yaxis2.type == "log"


def test_however_many_methods_no_two_lines_of_a_sequence_look_alike(sequence: pd.DataFrame) -> None:
    part = sequence[sequence["method"] == "rome"]
    figure = plot_sequence(pd.concat([part.assign(method=f"method {i}") for i in range(12)]))
    looks = {line.name: (line.line.color, line.line.dash) for line in figure.data if line.line.dash != "dot"}
    assert len(set(looks.values())) == len(looks) == 12


def test_a_trace_without_a_metric_is_refused(trace) -> None:
    with pytest.raises(ValueError, match="lacks a column of prob, logprob, logit_diff, kl"):
        plot_trace(trace.drop(columns="prob"))


def test_less_divergence_has_the_stronger_colour(trace) -> None:
    heat = plot_trace(trace.rename(columns={"prob": "kl"})).data[0]
    corrupted = (trace["prob"] - trace["indirect_effect"]).iloc[0]
    assert heat.reversescale
    assert heat.zmax == pytest.approx(corrupted)
    assert heat.zmin <= trace["prob"].min() or heat.zmin == pytest.approx(corrupted - 1e-6)


def test_an_approximate_trace_is_called_so(trace) -> None:
    assert "approximate" in plot_trace(trace.assign(method="attribution")).layout.title.text
    assert "approximate" not in plot_trace(trace.assign(method="exact")).layout.title.text


@pytest.mark.parametrize(
    ("plot", "frame", "column", "source"),
    [
        (plot_trace, "trace", "role", "to_frame"),
        (plot_average_effects, "effects", "ci_low", "average_effects"),
        (plot_scores, "summary", "method", "summarize"),
        (plot_scores, "summary", "ES_high", "summarize"),
        (plot_sequence, "sequence", "norm_growth", "EditSequence.checkpoints"),
    ],
)
def test_a_missing_column_is_named(plot, frame: str, column: str, source: str, request: pytest.FixtureRequest) -> None:
    incomplete = request.getfixturevalue(frame).drop(columns=column)

    with pytest.raises(ValueError, match=rf"lacks the columns \['{column}'\]. Give what {source}"):
        plot(incomplete)


@pytest.mark.parametrize(
    ("plot", "frame"),
    [
        (plot_trace, "trace"),
        (plot_average_effects, "effects"),
        (plot_scores, "summary"),
        (plot_sequence, "sequence"),
    ],
)
def test_frames_are_not_changed(plot, frame: str, request: pytest.FixtureRequest) -> None:
    given = request.getfixturevalue(frame)
    copy = given.copy(deep=True)

    plot(given)

    pd.testing.assert_frame_equal(given, copy)


def test_bleed_over_has_a_point_for_each_prompt_and_scales_that_hold_it() -> None:
    frame = pd.DataFrame({"case_id": [1, 1], "prompt": ["a", "<b>"], "size": [0.5, 0.1], "kl": [0.2, 0.0]})
    figure = plot_bleed_over(frame)

    (points,) = figure.data
    assert (list(points.x), list(points.y), list(points.text)) == ([0.5, 0.1], [0.2, 0.0], ["a", "&lt;b&gt;"])
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "linear")
    with pytest.raises(ValueError, match=r"lacks the columns \['share'\]"):
        plot_bleed_over(frame, forecast="share")


def test_a_comparison_names_the_answer_if_it_is_the_same_for_all_prompts() -> None:
    lens = pd.DataFrame({"condition": "before", "layer": [0, 0], "answer_probability": [0.2, 0.4], "answer": " Rome"})
    moved = pd.DataFrame({"kind": "mlp", "layer": [0], "change": [0.5]})

    figure = plot_comparison(lens, moved)
    assert figure.layout.annotations[0].text == "logit lens: p(Rome)"
    assert list(figure.data[0].y) == pytest.approx([0.3])
    mixed = plot_comparison(lens.assign(answer=["Rome", "Paris"]), moved)
    assert mixed.layout.annotations[0].text == "logit lens: p(top token after)"


def test_convergence_has_a_line_for_each_layer_in_three_panels():
    """A row's numbers are where they belong, tokens ascend, and a measure that is not known leaves a gap."""
    frame = pd.DataFrame(
        {
            "layer": [2, 2, 4, 4],
            "tokens": [2000, 1000, 1000, 2000],
            "half_difference": [0.1, 0.2, 0.4, 0.3],
            "half_cosine": [0.9, None, 0.7, 0.8],
            "effective_rank": [20.0, 10.0, 30.0, 40.0],
        }
    )
    figure = plot_convergence(frame)
    assert [line.name for line in figure.data] == ["layer 2"] * 3 + ["layer 4"] * 3
    assert [line.showlegend for line in figure.data] == [True, False, False] * 2
    assert all(list(line.x) == [1000, 2000] for line in figure.data)
    assert [list(line.y) for line in figure.data[:1]] == [[0.2, 0.1]]
    assert np.isnan(figure.data[1].y[0])
    assert list(figure.data[5].y) == [30, 40]
    with pytest.raises(ValueError, match=r"lacks the columns \['half_cosine'\].*KeyCovariance.report"):
        plot_convergence(frame.drop(columns="half_cosine"))


def test_effects_below_zero_are_seen_and_zero_is_palest():
    frame = pd.DataFrame(
        [("mlp", "a", layer, mean, 3) for layer, mean in enumerate((0.3, -0.1))],
        columns=["kind", "role", "layer", "mean", "n"],
    )
    heatmap = plot_effect_maps(frame).data[0]
    assert (heatmap.zmin, heatmap.zmax) == (-0.1, 0.3)
    at_zero = [colour for at, colour in heatmap.colorscale if at == pytest.approx(0.25)]
    assert at_zero == ["rgb(247,252,245)"]
    assert heatmap.colorscale[0] == (0.0, "rgb(198, 198, 198)")
