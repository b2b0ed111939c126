"""The modules that make the paper's figures: each runs on a tiny model, leaves its files, and goes on where it was."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import rome_lens as rl
from analyses import (
    figure1_causal_traces,
    figure2_average_effects,
    figure3_severed,
    figure4_worked_rewrite,
    figure6_generations,
    noise_levels,
    table4_counterfact,
    tracing_against_editing,
)
from analyses.common import figures
from analyses.common.kept_edits import kept_edits
from analyses.common.options import parsed, parser
from analyses.common.tables import as_in_paper
from rome_lens.plots import saving
from tests.analyses.cases import TRACE, known, refused, whole


def test_figure1_is_the_trace_of_the_chosen_fact(given, tiny, tmp_path):
    figure1_causal_traces.main([*given["facts"], "--index", "1"])
    frame = pd.read_csv(tmp_path / "out" / "traces.csv")
    made_by = whole(tmp_path / "out", "figure1", "trace", "heads")
    fact = known(tiny)[1]
    trace = rl.causal_trace(tiny, fact, kind="mlp", samples=1, progress=False)
    assert made_by["prompt"] == fact.text
    assert frame.loc[frame["kind"] == "mlp", "prob"].tolist() == pytest.approx(trace.restored.flatten().tolist(), 1e-4)
    assert len((tmp_path / "out" / "traces" / "rows.jsonl").read_text().splitlines()) == 1 + 3


def test_figure2_averages_the_facts_that_are_predicted_and_names_its_input(given, tmp_path):
    figure2_average_effects.main([*given["facts"], "--count", "2"])
    assert (pd.read_csv(tmp_path / "out" / "average_total_effect.csv")["n"] == 2).all()
    assert list(whole(tmp_path / "out", "figure2", "lines")["inputs"]) == ["facts.json"]


def test_figure3_has_the_effect_at_the_subjects_end_with_and_without_severing(given, tiny, tmp_path):
    figure3_severed.main([*given["facts"], "--count", "2"])
    whole(tmp_path / "out", "figure3")
    frame = pd.read_csv(tmp_path / "out" / "severed.csv").set_index(["kind", "layer"])["mean"]
    assert set(frame.index.get_level_values(0)) == {"resid", "resid, mlp severed", "resid, attn severed"}
    traces = [
        rl.causal_trace(tiny, fact, samples=1, severed=("mlp",), progress=False).indirect_effect for fact in known(tiny)
    ]
    starts = [rl.causal_trace(tiny, fact, samples=1, progress=False).subject_range[1] - 1 for fact in known(tiny)]
    expected = np.mean([trace[last, 0].item() for trace, last in zip(traces[:2], starts[:2], strict=True)])
    assert frame["resid, mlp severed", 0] == pytest.approx(expected, rel=1e-3)


def test_figure4_goes_from_the_old_answer_to_the_new_one(given, tiny, tmp_path, weights_of):
    before = weights_of(tiny)
    figure4_worked_rewrite.main(given["records"])
    out = tmp_path / "out"
    whole(out, "figure4", "comparison")
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    keys, steps, outcome = (pd.read_csv(out / f"{name}.csv") for name in ("keys", "steps", "outcome"))
    assert np.isclose(keys.loc[keys["group"] == "prompt", "share"], 1, atol=1e-3).sum() == 1
    new = steps[steps["object"] == "new"].set_index("fraction")["probability"]
    after = outcome[(outcome["group"] == "prompt") & (outcome["object"] == "new")].set_index("condition")["probability"]
    assert new[0.0] == pytest.approx(after["before"], rel=1e-3)
    assert new[1.0] == pytest.approx(after["after"], rel=1e-3)
    assert new[1.0] > new[0.0]


def test_figure6_writes_each_prompt_before_and_after_and_reads_the_kept_edit(given, tmp_path, monkeypatch):
    figure6_generations.main([*given["records"], "--length", "20"])
    monkeypatch.setattr(rl, "rome", lambda *_, **__: pytest.fail("The edit is there already."))
    figure6_generations.main([*given["records"], "--length", "20"])
    frame = pd.read_csv(tmp_path / "out" / "texts.csv")
    whole(tmp_path / "out", "figure6")
    assert frame.groupby("model")["prompt"].nunique().to_dict() == {"before the edit": 2, "after the edit": 2}


def test_noise_levels_compare_with_the_papers_noise(given, tmp_path):
    noise_levels.main([*given["facts"], "--count", "2", "--sigmas", "1", "--window", "1"])
    report = pd.read_csv(tmp_path / "out" / "report.csv")
    whole(tmp_path / "out", "noise_levels", "robustness")
    assert list(report["corruption"]) == ["Gaussian, 3 sigma", "Gaussian, 1 sigma", "uniform, 3 sigma"]
    assert report["agreement"][0] == pytest.approx(1)
    lines = (tmp_path / "out" / "traces" / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 6


def test_tracing_against_editing_puts_one_cell_beside_the_scores(given, tiny, tmp_path, monkeypatch):
    """A second run, as after a kill, neither traces nor edits nor scores again, and finds the same."""
    tracing_against_editing.main([*given["records"], "--count", "2", *TRACE])
    first = pd.read_csv(tmp_path / "out" / "facts.csv")
    for name in ("rome", "evaluate.score_record"):
        monkeypatch.setattr(f"rome_lens.{name}", lambda *_, **__: pytest.fail("This was done already."))
    tracing_against_editing.main([*given["records"], "--count", "2", *TRACE])
    pd.testing.assert_frame_equal(first, pd.read_csv(tmp_path / "out" / "facts.csv"))
    whole(tmp_path / "out", "tracing_against_editing")
    refused(tracing_against_editing.main, [*given["records"], "--count", "2", *TRACE], tiny)
    trace = rl.causal_trace(tiny, known(tiny)[0], kind="mlp", samples=1, progress=False)
    effect = trace.indirect_effect[trace.subject_range[1] - 1, 1].item()
    assert first["mlp_effect"][0] == pytest.approx(effect, rel=1e-3, abs=1e-6)
    assert (first["layer"] == 1).all()


def test_correlations_are_those_of_numpy_and_empty_where_nothing_varies():
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        random.normal(size=(30, 11)), columns=[*tracing_against_editing.TRACED, *tracing_against_editing.SCORES]
    )
    frame["ES"] = 1.0
    frame["PS"] = [0.0, *[1.0] * 29]  # many resamples are without the one that differs
    frame["PM"] = frame["mlp_effect"] ** 3
    table = tracing_against_editing.correlations(frame).set_index(["traced", "score"])
    assert table.loc[("mlp_effect", "PM"), "spearman"] == pytest.approx(1)
    expected = np.corrcoef(frame["mlp_effect"], frame["PM"])[0, 1] ** 2
    assert table.loc[("mlp_effect", "PM"), "r2"] == pytest.approx(expected)
    assert table.loc[("mlp_effect", "ES"), "spearman":].isna().all()
    assert table.loc[("mlp_effect", "PS"), "spearman":].between(-1, 1).all()
    row = table.loc[("resid_effect", "NM")]
    assert row["spearman_low"] < row["spearman"] < row["spearman_high"]


def test_an_edit_of_another_request_model_or_configuration_is_not_taken_for_the_records(given, tiny, tmp_path):
    from tests.edit.artifact.test_edit import REQUEST, made_up

    covariance = rl.KeyCovariance.load(tmp_path / "covariance.safetensors")
    config, folder = rl.RomeConfig(contexts=["{}"]), tmp_path / "edits"
    record = rl.EditRecord(rl.EditRequest(REQUEST.prompt, REQUEST.subject, "Oslo"), "Paris", case_id=7)
    with kept_edits(tiny, config, folder, covariance) as edit_of:
        made_up(tiny).save(folder / "7.safetensors")
        with pytest.raises(rl.errors.FormatError, match="begun with .*'Rome'.*, but .*'Oslo'"):
            edit_of(record)
    other = rl.RomeConfig(contexts=["{}"], steps=3)
    with pytest.raises(rl.errors.FormatError, match="config.steps"), kept_edits(tiny, other, folder, covariance):
        pass
    edited = made_up(tiny).applied(tiny)
    with edited, pytest.raises(rl.errors.FormatError, match="weights"), kept_edits(tiny, config, folder, covariance):
        pass


def test_table4_has_a_row_for_each_method_and_what_made_it(given, tmp_path, capsys):
    """Again it is the same, without a record measured anew."""
    asked = [*given["records"], "--count", "2", "--methods", "ft", "ft+l"]
    table4_counterfact.main(asked)
    out, printed = tmp_path / "out", capsys.readouterr().out
    assert list(pd.read_csv(out / "table.csv")["method"]) == ["base", "ft", "ft+l"]
    assert printed.strip() == (out / "table.md").read_text().strip()
    assert "| ROME on GPT-2 XL (paper, table 4) |  | 89.2 | 100.0 |  | 96.4 |  | 75.4 |  |" in printed
    assert set(json.loads((out / "manifest.json").read_text())["inputs"]) == {"records.json", "covariance.safetensors"}
    made = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    table4_counterfact.main(asked)
    assert {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()} == made
    assert capsys.readouterr().out == printed


def test_the_papers_layout_is_in_per_cent_with_half_of_the_interval():
    """A method without a score has an empty cell; a column that nobody measured is left out."""
    scores = {"S": [0.5, None], "S_low": [0.4, None], "S_high": [0.7, None]}
    table = as_in_paper(pd.DataFrame({"method": ["base", "kn"], "n": [2, 0]} | scores), {"S": 89.2, "GE": 1.0}, "paper")
    assert table.splitlines()[0] == "| editor | n | S |"
    assert table.splitlines()[2:] == ["| base | 2 | 50.0 (15.0) |", "| kn | 0 |  |", "| paper |  | 89.2 |"]


def test_full_is_the_papers_size_unless_something_else_is_said():
    def options(*argv: str):
        arguments = parser("")
        arguments.add_argument("--count", type=int, default=2)
        arguments.add_argument("--samples", type=int, default=3)
        return parsed(arguments, argv, full={"count": 1000, "samples": 10})

    assert (options().count, options().samples) == (2, 3)
    assert (options("--full").count, options("--full").samples) == (1000, 10)
    assert (options("--full", "--count", "7").count, options("--full", "--count", "7").samples) == (7, 10)


def test_without_kaleido_the_html_is_written_and_a_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saving, "find_spec", lambda name: None)
    frame = pd.DataFrame([("base", 1, 0.5, 0.4, 0.6)], columns=["method", "n", "ES", "ES_low", "ES_high"])
    figures.write_figures({"figure": rl.plots.plot_scores(frame)}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.html"]
    assert "pip install 'rome-lens[figures]'" in capsys.readouterr().out
