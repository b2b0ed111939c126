"""The robustness report: a row for each setting, read off traces that it keeps."""

import pytest

import rome_lens as rl

FACTS = [rl.Fact("In Italy, {} is located in the city of", "The Colosseum"), rl.Fact("The capital of {} is", "Italy")]
NOISES = {"small": rl.GaussianNoise(std=0.1), "large": rl.GaussianNoise(std=1.0)}


def test_report_has_a_row_for_each_setting_and_agrees_with_itself(tiny, tmp_path):
    traces = tmp_path / "traces"
    settings = {"corruptions": NOISES, "windows": (1, 2), "samples": 2, "out": traces, "progress": False}
    report = rl.locate.robustness_report(tiny, FACTS, **settings)
    assert len(report) == 2 * 3 * 2
    assert report.iloc[0].agreement == pytest.approx(1)
    assert report.agreement.between(-1, 1).all()
    assert (report.n == 2).all()
    assert len(rl.locate.load_traces(traces)) == 2 * len(report)
    assert rl.locate.robustness_report(tiny, FACTS, **settings).equals(report)


def test_peak_is_where_the_average_effect_is_largest(tiny):
    report = rl.locate.robustness_report(
        tiny, FACTS, corruptions=NOISES, metrics=["prob"], windows=[2], samples=2, progress=False
    )
    made = rl.trace_facts(tiny, FACTS, kinds=["mlp"], corruption=NOISES["large"], window=2, samples=2, progress=False)
    effects = rl.average_effects(made.traces)
    largest = effects.loc[effects["mean"].idxmax()]
    row = report[report.corruption == "large"].iloc[0]
    assert (row.peak_role, row.peak_layer) == (largest.role, largest.layer)
    assert row.peak_effect == pytest.approx(largest["mean"])


def test_less_divergence_counts_as_more(tiny):
    report = rl.locate.robustness_report(
        tiny, FACTS, kind="resid", corruptions=NOISES, metrics=["kl"], windows=[1], samples=2, progress=False
    )
    assert (report.peak_effect > 0).all()


def test_facts_that_the_model_does_not_know_are_refused(tiny):
    wrong = [rl.Fact("The capital of {} is", "Italy", answer="Apple")]
    with pytest.raises(ValueError, match="predicts the answer of none of the facts"):
        rl.locate.robustness_report(tiny, wrong, progress=False)


def test_figure_shows_each_setting(tiny):
    report = rl.locate.robustness_report(tiny, FACTS, corruptions=NOISES, windows=[1], samples=2, progress=False)
    figure = rl.plots.plot_robustness(report)
    assert sum(len(trace.x) for trace in figure.data) == len(report)
    with pytest.raises(ValueError, match="lacks the columns"):
        rl.plots.plot_robustness(report.drop(columns="agreement"))
