"""Studies of edits: each runs on a tiny model, leaves its tables and what made them, and goes on where it was."""

import json

import pandas as pd
import pytest
import torch

import rome_lens as rl
from analyses import (
    attribution_agreement,
    batch_editing,
    bleed_over,
    figure5_layers_and_tokens,
    record_cost,
    sequential_editing,
    table1_zsre,
    train_mend,
    ultraedit,
)
from tests.analyses.cases import known, refused, whole
from tests.data.test_load_records import CASES

TWO = ["--count", "2"]


def nothing_twice(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Lets the package's functions fail: what they do was done already."""
    for name in names:
        monkeypatch.setattr(f"rome_lens.{name}", lambda *_, **__: pytest.fail("This was done already."))


def test_figure5_at_the_papers_size_edits_every_layer(given, covariances, tiny, tmp_path):
    figure5_layers_and_tokens.main(
        [*given["plain"], *covariances, "--full", "--count", "1", "--edited", "subject_last"]
    )
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert list(scores["layer"]) == [-1, *range(tiny.cfg.n_layers)]
    assert whole(tmp_path / "out", "figure5")["arguments"]["layers"] is None


def test_bleed_over_of_all_records_is_kept(given, tiny, tmp_path, monkeypatch):
    bleed_over.main([*given["records"], "--full"])
    first = pd.read_csv(tmp_path / "out" / "bleed_over.csv")
    assert first.groupby("case_id").size().to_dict() == {0: 2, 1: 2, 2: 2}
    nothing_twice(monkeypatch, "rome", "evaluate.forecast_bleed_over")
    bleed_over.main([*given["records"], "--full"])
    pd.testing.assert_frame_equal(first, pd.read_csv(tmp_path / "out" / "bleed_over.csv"))
    assert whole(tmp_path / "out", "bleed_over")["arguments"]["count"] is None
    refused(bleed_over.main, [*given["records"], "--full"], tiny)


@pytest.mark.filterwarnings("ignore::rome_lens.errors.EditWarning")
def test_a_ledger_gets_one_record_about_each_subject(given, covariances, tmp_path):
    path = tmp_path / "records.json"
    records = json.loads(path.read_text())[:2]
    other = records[0] | {"case_id": 9, "requested_rewrite": records[0]["requested_rewrite"] | {"prompt": "{} is near"}}
    path.write_text(json.dumps([records[0], other, records[1]]))
    batch_editing.main([*given["plain"], *covariances, "--methods", "ledger"])
    scores = pd.read_csv(tmp_path / "out" / "records.csv")
    assert list(scores["case_id"].unique()) == [records[0]["case_id"], records[1]["case_id"]]


@pytest.mark.filterwarnings("ignore::rome_lens.errors.EditWarning")  # a tiny model knows no fact
def test_a_batch_is_scored_on_the_model_that_holds_it_all(given, covariances, tiny, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("The Space Needle is in Seattle. " * 20)
    arguments = [*given["plain"], *covariances, *TWO, "--layers", "0", "1", "--perplexity-texts", str(text)]
    batch_editing.main([*arguments, "--methods", "memit", "ledger"])
    asked = rl.load_counterfact(tmp_path / "records.json")[:2]
    kept = {layer: rl.KeyCovariance.load(tmp_path / "covariances" / f"layer{layer}.safetensors") for layer in (0, 1)}
    edit = rl.memit(
        tiny,
        [record.request for record in asked],
        covariances=kept,
        config=rl.MemitConfig(layers=(0, 1)),
        on_unhealthy="ignore",
        progress=False,
    )
    with edit.applied(tiny):
        expected = rl.summarize(rl.score_edits(tiny, asked, {})).iloc[0]
        perplexity = rl.evaluate.perplexity(tiny, text.read_text(), progress=False)
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("method")
    assert table.loc["memit, layers 0 1", "EM"] == pytest.approx(expected["EM"], rel=1e-3)
    assert table.loc["memit, layers 0 1", "perplexity"] == pytest.approx(perplexity, rel=1e-4)
    nothing_twice(monkeypatch, "score_edits")
    batch_editing.main([*arguments, "--methods", "memit", "ledger"])
    assert list(pd.read_csv(tmp_path / "out" / "table.csv")["method"]) == ["base", "memit, layers 0 1", "ledger"]
    assert set(whole(tmp_path / "out")["inputs"]) == {"records.json", "text.txt"}
    refused(batch_editing.main, [*arguments, "--methods", "memit"], tiny)


def test_a_sequence_has_a_row_for_each_edit_and_checkpoint(given, tmp_path):
    (text := tmp_path / "text.txt").write_text("The capital of France is Paris. " * 9)
    arguments = [*given["records"], *TWO, "--methods", "ft", "--checkpoints", "1", "2", "--perplexity-texts", str(text)]
    sequential_editing.main(arguments)
    out = tmp_path / "out"
    assert list(pd.read_csv(out / "edits.csv")["edit"]) == [1, 2]
    checkpoints, table = (pd.read_csv(out / f"{name}.csv") for name in ("checkpoints", "table"))
    assert list(checkpoints["edits"]) == [0, 1, 2]
    assert list(table["edits"]) == [1, 2]
    assert list(table["base_perplexity"]) == [checkpoints["perplexity"][0]] * 2
    assert len(list((out / "ft").glob("*.safetensors"))) == 2
    whole(out, "figure")


def test_a_sequence_of_questions_has_the_scores_of_its_data_set(given, tmp_path):
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([CASES["zsRE"][0], CASES["zsRE"][0] | {"subject": "Ann", "src": "Ann plays the"}]))
    arguments = ["--out", str(tmp_path / "out"), "--records", str(path), "--methods", "ultraedit", "--batch", "2"]
    sequential_editing.main([*arguments, "--learning-rate", "0.1"])
    table = pd.read_csv(tmp_path / "out" / "checkpoints.csv")
    assert {"efficacy", "paraphrase", "specificity"} <= set(table)
    assert list(table["edits"]) == [0, 2]
    assert table["norm_growth"].iloc[-1] > 0


def test_a_sequence_of_passages_is_asked_about_their_parts(given, covariances, tmp_path):
    path = tmp_path / "unke.json"
    record = CASES["UnKEBench or EditEverything"][0]
    path.write_text(json.dumps([record, record | {"id": 2, "question": "And who else lived there?"}]))
    arguments = ["--out", str(tmp_path / "out"), "--records", str(path), "--methods", "anyedit", "--layers", "1"]
    sequential_editing.main(
        [*arguments, *covariances, "--steps", "2", "--covariance-weight", "7", "--checkpoints", "1", "2"]
    )
    table = pd.read_csv(tmp_path / "out" / "checkpoints.csv")
    assert {"perplexity_doc", "greedy_match_sub_question", "contains"} <= set(table)
    assert list(table["edits"]) == [0, 1, 2]
    config = rl.Edit.load(tmp_path / "out" / "anyedit" / "00001.safetensors").config
    assert (config["steps"], config["covariance_weight"]) == (2, 7)


def test_sequences_in_batches_by_methods_that_remember(given, covariances, tmp_path):
    methods = ["--methods", "ultraedit", "memit-keys", "--batch", "2", "--layers", "0", "1"]
    sequential_editing.main([*given["plain"], *TWO, *covariances, *methods])
    table = pd.read_csv(tmp_path / "out" / "checkpoints.csv")
    assert table.groupby("method")["edits"].apply(list).to_dict() == {"memit-keys": [0, 2], "ultraedit": [0, 2]}
    kept = [rl.Edit.load(tmp_path / "out" / name / "00001.safetensors") for name in ("ultraedit", "memit-keys")]
    assert [len(edit.requests) for edit in kept] == [2, 2]
    assert kept[1].config["earlier_keys"]


def test_ultraedits_numbers_are_swept_and_leave_the_model_as_it_was(given, tiny, tmp_path):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    options = ["--count", "6", "--turn", "3", "--checkpoints", "3", "--sample", "2", "--layers", "0,2"]
    ultraedit.main([*given["plain"][:2], *options, "--learning-rates", "1e-5", "1e-3"])
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table["edits"].tolist() == [0, 3, 6] * 2
    assert table.loc[table["edits"] > 0, "cpu_seconds_an_edit"].gt(0).all()
    assert table["norm_growth"].iloc[5] > table["norm_growth"].iloc[2] > 0
    assert len({record.request.subject for record in ultraedit.made_up(10_000)}) == 10_000
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    whole(tmp_path / "out")


def test_the_gradients_agree_with_exact_traces_as_the_table_says(given, tiny, tmp_path):
    attribution_agreement.main([*given["facts"], *TWO, "--traces", str(tmp_path / "traces")])
    table = pd.read_csv(tmp_path / "out" / "agreement.csv").set_index("kind")
    asked = {"kind": "resid", "samples": 1, "progress": False}
    pairs = [
        attribution_agreement.agreement(
            rl.causal_trace(tiny, fact, **asked), rl.causal_trace(tiny, fact, method="attribution", **asked)
        )
        for fact in known(tiny)[:2]
    ]
    assert table.loc["resid", "rank_correlation"] == pytest.approx(sum(each for each, _ in pairs) / 2, abs=1e-3)
    assert whole(tmp_path / "out")["arguments"]["count"] == 2


def test_the_cost_of_a_record_is_counted_and_said_of_a_larger_model(given, tmp_path):
    record_cost.main([*given["records"], "--count", "1", "--methods", "ft", "--parameters", "1e9"])
    row = pd.read_csv(tmp_path / "out" / "cost.csv").iloc[0]
    assert row["operations_per_record"] > 0
    larger = row["operations_per_record"] / row["parameters"] * 1e9
    assert row["larger_operations_per_record"] == pytest.approx(larger, rel=1e-3)
    assert whole(tmp_path / "out")["arguments"]["parameters"] == 1e9


def test_a_trained_mend_edits_in_the_table_of_zsre(given, tmp_path):
    """The editor that one command leaves is what the other takes, and each says what made its result."""
    questions = [
        {
            "subject": subject,
            "src": f"What is the capital of {subject}?",
            "rephrase": f"The capital of {subject} is",
            "loc": "nq question: who wrote the opera",
            "loc_ans": "Verdi",
            "alt": "Rome",
            "answers": ["Paris"],
        }
        for subject in ("France", "Italy", "Spain", "Norway")
    ]
    zsre = tmp_path / "zsre.json"
    zsre.write_text(json.dumps(questions))
    trained = ["--steps", "2", "--validation", "1", "--interval", "1", "--rank", "4"]
    train_mend.main(["--records", str(zsre), *trained, "--out", str(tmp_path / "mend")])
    assert list(pd.read_csv(tmp_path / "mend" / "losses.csv")["step"]) == [0, 1, 2]
    assert set(whole(tmp_path / "mend")["inputs"]) == {"zsre.json"}
    editor = ["--methods", "mend", "--mend-editor", str(tmp_path / "mend" / "editor.safetensors")]
    table1_zsre.main([str(zsre), *TWO, *editor, "--out", str(tmp_path / "out")])
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("method")
    assert table.loc[["base", "mend"], "n"].tolist() == [2, 2]
    assert set(whole(tmp_path / "out")["inputs"]) == {"zsre.json", "editor.safetensors"}
