"""What a reader of a figure has to see: labels apart, numbers as words have them, n, and results taken as they are."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

import rome_lens as rl
from rome_lens.plots.stacking import stacked
from rome_lens.plots.style import log_axis

METHODS = ["base", "rome", "memit", "<b>ft", "kn"]


def summary(methods: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame({"method": methods, "n": 11})
    for metric in ("S", "ES", "PS", "NS"):
        frame = frame.assign(**{metric: 0.5, f"{metric}_low": 0.25, f"{metric}_high": 1.0})
    return frame


def test_the_numbers_of_few_methods_stand_below_the_axis_away_from_the_whiskers():
    figure = rl.plots.plot_scores(summary(METHODS[:2]))
    assert figure.layout.xaxis.ticktext[1].startswith("ES<br><span")
    assert [text.count("0.50") for text in figure.layout.xaxis.ticktext] == [2] * 4
    assert figure.layout.xaxis.title.text == "n = 11"
    assert all(bar.texttemplate is None for bar in figure.data)


def test_many_methods_have_a_line_each_with_their_numbers_beyond_every_whisker():
    figure = rl.plots.plot_scores(summary(METHODS))
    assert [note.text for note in figure.layout.annotations] == ["S", "ES", "PS", "NS"]
    bars, texts = ([trace for trace in figure.data if trace.type == kind] for kind in ("bar", "scatter"))
    assert [bar.y[0] for bar in bars[:5]] == ["base", "rome", "memit", "&lt;b&gt;ft", "kn"]
    assert {tuple(text.text) for text in texts} == {("0.50",) * 5}
    assert min(text.x[0] for text in texts) > max(bar.x[0] + bar.error_x.array[0] for bar in bars)
    column = stacked(figure)
    heights = [(axis.domain[1] - axis.domain[0]) * (column.layout.height - 100) for axis in column.select_yaxes()]
    assert min(heights) >= 20 * len(METHODS)  # a line of letters for each


def test_protocols_of_many_methods_are_named_with_their_scores():
    frame = pd.concat([summary(METHODS).assign(protocol=name) for name in ("probability", "generated")])
    titles = [note.text for note in rl.plots.plot_scores(frame).layout.annotations]
    assert titles[3:5] == ["probability:<br>NS", "generated:<br>S"]


@pytest.mark.parametrize(
    ("values", "some"),
    [
        ([29.0, 90.0], ["30", "90"]),
        ([0.01, 1.0], ["0.01", "0.1"]),
        ([1e-6, 1.0], ["10<sup>-6</sup>", "10<sup>0</sup>"]),
    ],
)
def test_a_logarithmic_axis_has_numbers_of_one_kind_for_ticks(values, some):
    axis = log_axis(pd.Series(values))
    assert set(some) <= set(axis["ticktext"])
    assert len({"<sup>" in text for text in axis["ticktext"]}) == 1
    assert axis["range"][0] < axis["range"][1]


def test_a_change_of_a_per_cent_looks_small():
    checkpoints = pd.DataFrame(
        {"edits": [0, 9], "perplexity": [30.0, 30.2], "norm_growth": [0.0, 0.1], "ES": [0.0, 1.0]}
    )
    run = SimpleNamespace(checkpoints=checkpoints)
    figure = rl.plots.plot_sequence({"rome": run, "ft": run})
    assert {line.name for line in figure.data} == {"rome", "ft"}
    low, high = figure.layout.yaxis2.range
    assert 10 ** (high - low) > 2
    assert rl.plots.plot_sequence(run).data[0].name == "edited"
    lens = pd.DataFrame({"condition": ["before"], "layer": [0], "answer_probability": [0.2], "prompt": ["a"]})
    moved = pd.DataFrame({"kind": "mlp", "layer": [0], "change": [0.006]})
    compared = rl.plots.plot_comparison(SimpleNamespace(lens=lens, contributions=moved))
    assert compared == rl.plots.plot_comparison(lens, moved)
    assert compared.layout.yaxis2.range[1] >= 0.1
    with pytest.raises(ValueError, match="contributions is None"):
        rl.plots.plot_comparison(lens)


HOSTILE = '<a href="x">&<b>a<br>'


def frame(*columns: str, **values: object) -> pd.DataFrame:
    return pd.DataFrame({**{column: [0.25, 0.5] for column in columns}, **values})


EFFECTS = frame("mean", "ci_low", "ci_high", layer=[0, 1], n=7, kind=HOSTILE, role=HOSTILE, corruption=HOSTILE)
TRACE = frame("prob", "indirect_effect", position=[0, 1], layer=0, head=[0, 1], window=1)
TRACE = TRACE.assign(token=HOSTILE, role=HOSTILE, kind=HOSTILE)
LENS = frame("answer_probability", condition=HOSTILE, layer=[0, 1], answer=HOSTILE)
RUN = frame("edits", "perplexity", "norm_growth", "ES", method=HOSTILE)
LAYERS = summary(["rome"] * 2).assign(layer=[0, 1], effect=0.1, effect_low=0.0, effect_high=0.2)
HEADS = {"frame": TRACE.assign(position=1), "answer": HOSTILE, "clean": 0.5}
PLOTTED = {
    "plot_average_effects": {"frame": EFFECTS},
    "plot_comparison": {"lens": LENS, "contributions": frame("change", kind=HOSTILE, layer=[0, 1])},
    "plot_effect_maps": {"frame": EFFECTS},
    "plot_heads": HEADS,
    "plot_layers": {"table": LAYERS},  # which holds no text
    "plot_scores": {"summary": summary([HOSTILE, "rome"])},
    "plot_sequence": {"frame": RUN},
    "plot_trace": HEADS | {"frame": TRACE},
    "plot_traces": HEADS | {"frame": TRACE},
}


@pytest.mark.parametrize("name", PLOTTED)
def test_names_are_no_markup_in_any_figure(name):
    """Every text of a frame is hostile: what the figure shows of it is escaped, and once."""
    drawn = getattr(rl.plots, name)(**PLOTTED[name])
    shown = json.dumps(json.loads(drawn.to_json()))
    assert "<a" not in shown
    assert "&amp;lt;" not in shown
    assert name == "plot_layers" or "&lt;a href" in shown


def test_names_of_many_methods_and_protocols_are_no_markup():
    many = summary([HOSTILE, *METHODS]).assign(protocol=HOSTILE)
    drawn = rl.plots.plot_scores(pd.concat([many, many.assign(protocol="b")]))
    assert "<a" not in json.dumps(json.loads(drawn.to_json()))


def test_every_plot_function_is_tried():
    assert {name for name in rl.plots.__all__ if name.startswith("plot_")} == set(PLOTTED)
