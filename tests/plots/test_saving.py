"""Figures at the width of a paper's columns."""

import json
from itertools import pairwise

import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

import rome_lens as rl
from rome_lens.plots import saving
from rome_lens.plots.stacking import stacked

SCORES = pd.DataFrame([("base", 1, 0.5, 0.4, 0.6)], columns=["method", "n", "ES", "ES_low", "ES_high"])
EFFECTS = pd.DataFrame(
    [
        (kind, role, layer, 0.1 * layer, 0.0, 0.5, 3)
        for kind in ("resid", "mlp", "attn")
        for role in "ab"
        for layer in (0, 1)
    ],
    columns=["kind", "role", "layer", "mean", "ci_low", "ci_high", "n"],
)


@pytest.mark.parametrize("plot", [rl.plots.plot_effect_maps, rl.plots.plot_average_effects])
def test_in_one_column_panels_stand_below_each_other_with_their_titles_labels_and_scales(plot):
    figure = plot(EFFECTS)
    before = json.loads(figure.to_json())
    column = stacked(figure)
    axes = list(column.select_yaxes())
    assert [axis.domain for axis in column.select_xaxes()] == [(0, 1)] * 3
    assert all(upper.domain[0] > lower.domain[1] for upper, lower in pairwise(axes))
    assert all(axis.showticklabels is not False for axis in axes)
    titles = {note.text: note.y for note in column.layout.annotations}
    assert titles == {
        name: axis.domain[1] for name, axis in zip(("residual state", "MLP", "attention"), axes, strict=True)
    }
    for trace, axis in zip(column.data, axes, strict=False):
        if trace.type == "heatmap":
            assert trace.colorbar.y == pytest.approx(sum(axis.domain) / 2)
    assert json.loads(figure.to_json()) == before


def test_one_panel_stays_as_it_is():
    figure = rl.plots.plot_scores(SCORES)
    assert stacked(figure) == figure


def test_any_figure_is_saved():
    """Panels of a figure without a height are stacked; a table, which has no axes, gets one column."""
    figure = make_subplots(cols=2).add_scatter(y=[1], row=1, col=1).add_scatter(y=[2], row=1, col=2)
    upper, lower = stacked(figure).select_yaxes()
    assert upper.domain[0] > lower.domain[1]
    table = go.Figure(go.Table(cells={"values": [["a"]]}))
    assert stacked(table) == table
    table = go.Figure(go.Table(header={"values": ["before", "after"]}, cells={"values": [["a", "b"], ["c", "d"]]}))
    (cells,) = stacked(table).data[0].cells.values
    assert list(cells) == ["before<br>a", "after<br>c", "before<br>b", "after<br>d"]


def test_a_legend_that_is_too_wide_for_a_column_is_a_column_and_many_panels_stand_in_pairs():
    figure = rl.plots.plot_average_effects(EFFECTS)
    assert stacked(figure).layout.legend.orientation == "h"
    long = rl.plots.plot_average_effects(EFFECTS.replace({"role": {"a": "a" * 40, "b": "b" * 40}}))
    assert stacked(long).layout.legend.orientation == "v"
    assert stacked(long).layout.height == stacked(figure).layout.height + 20
    many = make_subplots(rows=2, cols=4)
    for place in range(8):
        many.add_scatter(y=[1], row=1 + place // 4, col=1 + place % 4)
    assert len({axis.domain for axis in stacked(many).select_xaxes()}) == 2
    assert len({axis.domain for axis in stacked(many).select_yaxes()}) == 4


@pytest.mark.parametrize(
    ("path", "options", "says"), [("a.PDF", {}, "without a suffix"), ("a", {"suffixes": []}, "names no form")]
)
def test_a_name_or_forms_that_make_no_sense_are_refused(tmp_path, path, options, says):
    with pytest.raises(ValueError, match=says):
        rl.plots.save(go.Figure(), tmp_path / path, **options)
    assert not list(tmp_path.iterdir())


def test_without_kaleido_the_html_is_written_and_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "find_spec", lambda name: None)
    with pytest.raises(rl.errors.UnavailableError, match=r"pip install 'rome-lens\[figures\]'"):
        rl.plots.save(rl.plots.plot_scores(SCORES), tmp_path / "figure", suffixes=[".html", ".svg"])
    assert [path.name for path in tmp_path.iterdir()] == ["figure.html"]


def test_a_file_that_is_there_is_kept(tmp_path):
    (tmp_path / "figure.svg").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        rl.plots.save(rl.plots.plot_scores(SCORES), tmp_path / "figure", suffixes=[".html", ".svg"])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(("columns", "inches"), [(1, 3.3), (2, 6.8)])
def test_the_printed_forms_are_as_wide_as_columns(tmp_path, columns, inches):
    pytest.importorskip("kaleido", reason="needs the extra figures")
    try:
        (path,) = rl.plots.save(rl.plots.plot_scores(SCORES), tmp_path / "a", columns=columns, suffixes=[".svg"])
    except rl.errors.UnavailableError as error:
        pytest.skip(str(error))
    width = float(path.read_text().partition('width="')[2].partition('"')[0])
    assert width == pytest.approx(inches * 96, abs=1)
