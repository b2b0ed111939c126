"""A layer is recommended from evidence: the parts against plain ones, and the whole on a tiny model."""

import pytest
import torch

import rome_lens as rl
from rome_lens.data.readers.question_bank import load_question_bank
from rome_lens.evaluate.layers import halving, recommending
from rome_lens.evaluate.layers.candidates import candidate_layers
from rome_lens.evaluate.layers.cost import forecast_seconds
from rome_lens.evaluate.layers.facts import known_records, to_trace_and_edit
from rome_lens.evaluate.layers.recommending import recommend_layers
from rome_lens.plots import plot_layers
from tests.known import said_records
from tests.tiny import CORPUS

SHORT = {"texts": [CORPUS] * 9, "tokens": 300, "config": rl.RomeConfig(contexts=["{}"], steps=2)}


@pytest.fixture(scope="module")
def known(tiny_model) -> list[rl.EditRecord]:
    """Records of what the tiny model says."""
    model = tiny_model("gpt2")
    found = known_records(model, said_records(model))
    assert len(found) > 8
    return found


def test_known_is_what_the_model_says_token_by_token(tiny, known):
    for record in known[:4]:
        text = record.request.text + (" " if record.request.space else "") + record.target_true
        ids = tiny.tokenizer(text)["input_ids"]
        start = len(tiny.tokenizer(record.request.text)["input_ids"])
        assert tiny(torch.tensor([ids]))[0].argmax(-1)[start - 1 : -1].tolist() == ids[start:]
    request = known[0].request
    unknown = rl.EditRecord(request, "Antarctica", ("a",), ("b",))
    assert known_records(tiny, [unknown, known[1]]) == [known[1]]


def test_facts_to_edit_are_not_those_that_were_traced():
    records = load_question_bank()
    traced, edited = to_trace_and_edit(records, traced=50, edited=24, seed=0)
    assert (len(traced), len(edited)) == (50, 24)
    assert {r.request.subject for r in traced}.isdisjoint(r.request.subject for r in edited)
    assert to_trace_and_edit(records, traced=50, edited=24, seed=0) == (traced, edited)
    assert to_trace_and_edit(records, traced=50, edited=24, seed=1) != (traced, edited)
    traced, edited = to_trace_and_edit(records[:5], traced=50, edited=24, seed=0)
    assert (len(traced), len(edited)) == (3, 2)


def test_candidates_are_the_strongest_the_known_and_some_between():
    effects = dict.fromkeys(range(30), 0.0) | {20: 1.0, 21: 0.9, 22: 0.8, 23: 0.7, 24: 0.6}
    found = candidate_layers(effects, [4], count=8)
    assert {4, 20, 21, 22, 23} < set(found)
    assert len(found) == 8
    assert found == sorted(found)
    assert all(layer < 20 for layer in set(found) - {20, 21, 22, 23})
    assert candidate_layers({0: 0.1, 1: 0.2, 2: 0.0}, [], count=8) == [0, 1, 2]


def test_each_round_halves_the_layers_and_sees_more_records():
    assert halving.rounds(8, 24) == [(8, 6, 6), (4, 12, 6), (2, 24, 12)]
    assert halving.rounds(1, 1) == [(1, 1, 1), (1, 1, 0), (1, 1, 0)]


@pytest.fixture(scope="module")
def recommended(tiny_model, known, tmp_path_factory):
    out = tmp_path_factory.mktemp("recommendation")
    made = recommend_layers(tiny_model("gpt2"), known, traced=4, edited=4, out=out, **SHORT, progress=False)
    return made, out


def test_the_recommended_layer_is_the_best_of_those_tried_on_all_records(recommended, tiny, known):
    made, _ = recommended
    assert list(made.table["layer"]) == [0, 1, 2]
    assert made.table["effect"].notna().all()
    finalists = made.table[made.table["n"] == 4]
    assert made.layer == made.config.layer == made.covariance.layer
    assert made.layer in set(finalists["layer"])
    chosen = finalists.set_index("layer").loc[made.layer]
    assert chosen["S"] == finalists["S"].max()
    config = made.config
    assert (config.steps, config.contexts) == (2, ["{}"])
    rl.rome(tiny, known[0].request, covariance=made.covariance, config=config, on_unhealthy="ignore", progress=False)


def test_scores_are_those_of_plain_edits(recommended, tiny, known):
    made, _ = recommended
    _, edited = to_trace_and_edit(known, traced=4, edited=4, seed=0)
    scores = []
    for record in edited:
        edit = rl.rome(
            tiny, record.request, covariance=made.covariance, config=made.config, on_unhealthy="ignore", progress=False
        )
        with edit.applied(tiny):
            scores.append(rl.evaluate.score_record(tiny, record)["EM"])
    found = made.table.set_index("layer").loc[made.layer, "EM"]
    assert found == pytest.approx(sum(scores) / 4, abs=1e-6)


def test_effects_are_those_of_whole_traces(recommended, tiny, known):
    """One row of each grid is computed, with the same numbers."""
    made, _ = recommended
    traced, _ = to_trace_and_edit(known, traced=4, edited=4, seed=0)
    whole = rl.trace_facts(tiny, [r.fact for r in traced], kinds=["mlp"], samples=recommending._SAMPLES, progress=False)
    averages = rl.average_effects(whole.traces)
    expected = averages[averages["role"] == "last subject token"]["mean"]
    assert made.table["effect"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_second_call_goes_on_in_the_folder_and_edits_nothing(recommended, tiny, known, monkeypatch):
    made, out = recommended
    monkeypatch.setattr("rome_lens.edit.methods.rome.optimise_value", None)
    again = recommend_layers(tiny, known, traced=4, edited=4, out=out, **SHORT, progress=False)
    assert again.config == made.config
    assert again.table.equals(made.table)
    assert torch.equal(again.covariance.second_moment, made.covariance.second_moment)


def test_it_says_how_long_it_takes_before_it_starts(tiny, known, monkeypatch, capsys, weights_of):
    before = weights_of(tiny)
    monkeypatch.setattr(recommending, "trace_facts", None)
    with pytest.raises(TypeError):
        recommend_layers(tiny, known, traced=4, edited=4, **SHORT)
    shown = capsys.readouterr().err
    assert "4 facts to trace, 4 to edit at up to 3 layers: about 0." in shown
    assert "minutes (traces 0." in shown
    assert all((value == before[name]).all() for name, value in tiny.state_dict().items())


def test_the_forecast_grows_with_the_work(tiny, known, monkeypatch):
    monkeypatch.setattr("rome_lens.evaluate.layers.cost.seconds_a_token", lambda model: 1.0)
    asked = {"config": rl.RomeConfig(contexts=["{}"]), "samples": 3, "candidates": 3, "tokens": 300}
    one = forecast_seconds(tiny, known[:4], known[4:8], **asked)
    twice = forecast_seconds(tiny, known[:4] * 2, known[4:8] * 2, **asked | {"tokens": 600})
    assert {name: twice[name] / one[name] for name in one} == pytest.approx(dict.fromkeys(one, 2.0))


def test_the_figure_shows_effects_of_all_layers_and_scores_of_edited_ones(recommended):
    table = recommended[0].table.copy()
    table.loc[0, ["S", "ES", "PS", "NS"]] = float("nan")
    figure = plot_layers(table)
    lines = {trace.name: list(trace.x) for trace in figure.data}
    assert lines == {"S": [1, 2], "ES": [1, 2], "PS": [1, 2], "NS": [1, 2], "effect": [0, 1, 2]}
    assert len(recommended[0].plot().data) == 5
    with pytest.raises(ValueError, match="recommend_layers"):
        plot_layers(table.drop(columns="effect"))


def test_bad_arguments_are_refused_before_any_work(tiny, known, monkeypatch):
    monkeypatch.setattr(recommending, "trace_facts", None)
    with pytest.raises(ValueError, match="facts has 338 records, of which gpt2 knows 0, expected at least 2"):
        recommend_layers(tiny)
    with pytest.raises(ValueError, match="has 0 paraphrases and 0 neighbours, expected at least 1 of each"):
        recommend_layers(tiny, [rl.EditRecord(known[0].request, known[0].target_true)])
    with pytest.raises(ValueError, match="layer is 9, but gpt2 has layers 0 to 2"):
        recommend_layers(tiny, known, candidates=[9])
    with pytest.raises(ValueError, match="candidates is empty"):
        recommend_layers(tiny, known, candidates=[])
    with pytest.raises(ValueError, match="traced is 0"):
        recommend_layers(tiny, known, traced=0)


def test_candidates_are_chosen_among_the_layers_that_are_asked_for(tiny):
    effects = dict.fromkeys(range(10, 22), 0.1)
    found = candidate_layers(effects, [12], count=8)
    assert set(found) <= set(effects)
    assert len(found) == 8
    for layers, said in (([], "layers is empty"), ([99], "layer is 99"), ([0], r"candidates has \[1\], which are not")):
        with pytest.raises(ValueError, match=said):
            recommend_layers(tiny, layers=layers, candidates=[1])
