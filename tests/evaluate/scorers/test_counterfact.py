"""The paper's scores: against hand-computed cases, and with the weights put back after each record."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

import rome_lens as rl
from analyses.plain.evaluation import one_batch, one_pass_each, plain_scores
from rome_lens.data.records import Continuation
from rome_lens.evaluate.likelihood import mean_log_probabilities
from tests.edit.artifact.test_edit import made_up

RECORD = rl.EditRecord(
    request=rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target="Rome"),
    target_true="Paris",
    paraphrase_prompts=("Where is it? The Eiffel Tower is in", "The city of The Eiffel Tower is"),
    neighborhood_prompts=("The Space Needle is located in", "The Colosseum is in the city of"),
    case_id=5,
)


def plain_log_probability(model, prompt: str, continuation: str) -> float:
    """One pass for one continuation."""
    start = model.to_tokens(prompt).shape[1]
    tokens = model.to_tokens(f"{prompt} {continuation}")
    log_probs = model(tokens)[0].log_softmax(-1)
    return log_probs[torch.arange(start - 1, tokens.shape[1] - 1), tokens[0, start:]].mean().item()


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
@pytest.mark.parametrize("tokens_per_batch", [1, 30, 4096])
@torch.no_grad()
def test_batched_scores_equal_one_pass_for_each(tiny_model, family, bos, tokens_per_batch):
    model = tiny_model(family, bos=bos)
    asked = [
        Continuation(prompt, text)
        for prompt in ("The Eiffel Tower is in", "In", "The mother tongue of Dante is")
        for text in ("Rome", "Paris or Rome", "Seattle, in", "Rome")
    ]
    ours = mean_log_probabilities(model, asked, tokens_per_batch=tokens_per_batch)
    plain = [plain_log_probability(model, c.prompt, c.text) for c in asked]
    assert torch.allclose(ours, torch.tensor(plain), atol=1e-4)


@torch.no_grad()
def test_record_scores_are_those_computed_by_hand(tiny):
    def p(prompt: str, target: str) -> float:
        return math.exp(plain_log_probability(tiny, prompt, target))

    scores = rl.evaluate.score_record(tiny, RECORD)
    gains = {
        "E": [p(RECORD.request.text, "Rome") - p(RECORD.request.text, "Paris")],
        "P": [p(prompt, "Rome") - p(prompt, "Paris") for prompt in RECORD.paraphrase_prompts],
        "N": [p(prompt, "Paris") - p(prompt, "Rome") for prompt in RECORD.neighborhood_prompts],
    }
    for group, gain in gains.items():
        assert scores[f"{group}S"] == sum(g > 0 for g in gain) / len(gain)
        assert scores[f"{group}M"] == pytest.approx(sum(gain) / len(gain), abs=1e-6)


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
@pytest.mark.parametrize("plain", [one_pass_each, one_batch])
@pytest.mark.parametrize("true", ["Paris", "Seattle, in the city"])
def test_record_scores_are_those_of_whole_forward_passes(tiny_model, family, bos, plain, true):
    """What the benchmark compares with: the authors' one padded batch, and a pass for each prompt and target."""
    model = tiny_model(family, bos=bos)
    record = replace(RECORD, target_true=true)
    assert rl.evaluate.score_record(model, record) == pytest.approx(plain_scores(model, record, plain), abs=1e-5)


def test_metrics_without_prompts_are_left_out(tiny):
    record = rl.EditRecord(RECORD.request, "Paris")
    assert set(rl.evaluate.score_record(tiny, record)) == {"ES", "EM"}


def test_score_edits_gives_a_row_for_each_record_method_and_metric(tiny, weights_of):
    before = weights_of(tiny)
    records = [RECORD, rl.EditRecord(RECORD.request, "Seattle", case_id=6)]
    frame = rl.score_edits(tiny, records, {"noise": lambda *_: made_up(tiny)}, progress=False)
    assert list(frame.columns) == ["case_id", "method", "protocol", "metric", "value", "error"]
    assert frame.groupby(["case_id", "method"]).size().to_dict() == {
        (5, "base"): 6,
        (5, "noise"): 6,
        (6, "base"): 2,
        (6, "noise"): 2,
    }
    values = frame.set_index(["case_id", "method", "metric"])["value"]
    assert values[5, "base", "EM"] != values[5, "noise", "EM"]
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_weights_are_back_when_scoring_raises(tiny, weights_of):
    before = weights_of(tiny)
    too_long = rl.EditRecord(RECORD.request, "Paris", neighborhood_prompts=("Rome " * 200,))
    with pytest.raises(ValueError, match="but gpt2 reads at most 128"):
        rl.score_edits(tiny, [too_long], {"noise": lambda *_: made_up(tiny)}, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_scores_of_an_edited_model_are_those_that_score_edits_gives_its_method(tiny):
    """A batch edit is scored inside `applied`, an edit of one record by its method: the same rows."""
    edit = made_up(tiny)
    by_method = rl.score_edits(tiny, [RECORD], {"noise": lambda *_: edit}, progress=False)
    before = rl.score_edits(tiny, [RECORD], {}, progress=False)
    with edit.applied(tiny):
        after = rl.score_edits(tiny, [RECORD], {}, progress=False).assign(method="noise")
    pd.testing.assert_frame_equal(pd.concat([before, after], ignore_index=True), by_method)


def test_no_records_and_the_name_base_are_refused(tiny):
    with pytest.raises(ValueError, match="records is empty"):
        rl.score_edits(tiny, [], {"noise": lambda *_: made_up(tiny)})
    with pytest.raises(ValueError, match="records is empty"):
        rl.score_edits(tiny, [], {})
    with pytest.raises(ValueError, match="A method is named 'base'"):
        rl.score_edits(tiny, [RECORD], {"base": lambda *_: made_up(tiny)})


def rows(method: str, **metrics: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [(i, method, metric, value) for metric, values in metrics.items() for i, value in enumerate(values)],
        columns=["case_id", "method", "metric", "value"],
    )


def test_summary_has_means_intervals_and_the_harmonic_mean_of_means():
    frame = pd.concat(
        [rows("base", ES=[0, 1], PS=[0.5, 0.5], NS=[1, 0.5]), rows("rome", ES=[1, 1], PS=[1, 1], NS=[1, 1])]
    )
    summary = rl.summarize(frame).set_index("method")
    assert list(summary.index) == ["base", "rome"]
    base = summary.loc["base"]
    assert base["n"] == 2
    assert (base["ES"], base["PS"], base["NS"]) == (0.5, 0.5, 0.75)
    assert base["S"] == pytest.approx(3 / (1 / 0.5 + 1 / 0.5 + 1 / 0.75))
    assert base["ES_low"] <= base["ES"] <= base["ES_high"]
    assert summary.loc["rome", ["S", "S_high"]].tolist() == [1, 1]
    assert 0 < summary.loc["rome", "S_low"] < 0.9  # two records, all of whose prompts succeed, do not prove it


def test_proportions_have_a_width_and_real_numbers_have_a_bootstrap():
    """Those of the house by name; a user's own if it is 0 or 1 on every record, and both somewhere."""
    overlaps = {f"locality_near_{name}": [0.5] * 8 for name in (*rl.evaluate.text_overlap("a", "a"), "cosine")}
    before = rows("base", ES=[0] * 8, EM=[0.0] * 8, ours=[0] * 8, always=[0] * 8, locality_near=[0.5] * 8)
    after = rows("rome", ES=[1] * 8, EM=[0.5] * 8, ours=[1] * 8, always=[0] * 8, locality_near=[1] * 8, **overlaps)
    summary = rl.summarize(pd.concat([before, after])).set_index("method")
    width = {name: summary[f"{name}_high"] - summary[f"{name}_low"] for name in after["metric"].unique()}
    assert all(width[name].between(0.1, 0.5).all() for name in ("ES", "ours", "locality_near"))
    assert all((width[name] < 1e-12).all() for name in ("EM", "always"))
    assert all(width[name]["rome"] < 1e-12 for name in overlaps)


def test_harmonic_mean_is_zero_where_a_success_is():
    assert rl.summarize(rows("bad", ES=[0, 0], PS=[1, 1], NS=[1, 1]))["S"].item() == 0


def test_summary_without_all_successes_has_no_s():
    assert "S" not in rl.summarize(rows("x", ES=[1, 0]))


def test_summary_refuses_other_frames_and_duplicates():
    with pytest.raises(ValueError, match=r"lacks the columns \['case_id', 'metric'\]"):
        rl.summarize(pd.DataFrame({"method": ["a"], "value": [1.0]}))
    with pytest.raises(ValueError, match="more than once"):
        rl.summarize(pd.concat([rows("a", ES=[1]), rows("a", ES=[1])]))
