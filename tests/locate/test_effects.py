"""Average effects by token role."""

import pytest
import torch

import rome_lens as rl
from rome_lens.locate.roles import token_roles


def made_up(restored: torch.Tensor, subject: tuple[int, int], kind: str = "resid", **options) -> rl.CausalTrace:
    fact = rl.Fact("{} is", "x")
    tokens = [f"t{i}" for i in range(len(restored))]
    return rl.CausalTrace(
        fact=fact,
        model="made up",
        config=rl.TraceConfig(**{"kind": kind, "window": 1, **options}),
        tokens=tokens,
        subject_range=subject,
        answer="a",
        answer_tokens=(0,),
        predicted="a",
        predicted_token=0,
        clean=0.9,
        corrupted=0.1,
        restored=restored,
    )


def test_roles_of_the_papers_figure():
    assert token_roles(8, range(1, 4)) == [
        "before the subject",
        "first subject token",
        "middle subject tokens",
        "last subject token",
        "first subsequent token",
        "further tokens",
        "further tokens",
        "last token",
    ]


def test_a_subject_of_one_token_counts_as_last():
    assert token_roles(3, range(1)) == ["last subject token", "first subsequent token", "last token"]


def test_a_subject_at_the_end_leaves_no_other_last_token():
    assert token_roles(2, range(1, 2)) == ["before the subject", "last subject token"]


def test_layers_that_were_not_traced_are_left_out():
    grid = torch.tensor([[0.2, torch.nan, 0.4]])
    frame = rl.average_effects([made_up(grid, (0, 1)), made_up(grid, (0, 1))])
    assert frame["layer"].tolist() == [0, 2]
    assert frame["mean"].tolist() == pytest.approx([0.1, 0.3])
    with pytest.raises(ValueError, match="have different layers"):
        rl.average_effects([made_up(grid, (0, 1)), made_up(grid.nan_to_num(0.3), (0, 1))])


def test_means_are_over_facts_and_not_over_tokens():
    one = torch.tensor([[0.2], [0.1], [0.3], [0.5], [0.7], [0.1]])  # two further tokens: 0.5 and 0.7 - 0.1 -> 0.5
    two = torch.tensor([[0.2], [0.1], [0.2], [0.1]])  # one further token: 0.1
    frame = rl.average_effects([made_up(one, (0, 1)), made_up(two, (0, 1))])
    further = frame[frame.role == "further tokens"].iloc[0]
    assert further["n"] == 2
    assert further["mean"] == pytest.approx((((0.3 + 0.5 + 0.7) / 3 - 0.1) + (0.2 - 0.1)) / 2, abs=1e-6)
    assert further.ci_low <= further["mean"] <= further.ci_high


def test_roles_that_a_fact_lacks_do_not_count_it():
    long = made_up(torch.full((5, 2), 0.3), (0, 3))
    short = made_up(torch.full((3, 2), 0.5), (0, 1))
    frame = rl.average_effects([long, short])
    counts = frame.drop_duplicates("role").set_index("role")["n"]
    assert counts["first subject token"] == 1
    assert counts["last subject token"] == 2
    assert list(frame.columns) == ["kind", "role", "layer", "mean", "ci_low", "ci_high", "n"]


def test_kinds_are_kept_apart():
    frame = rl.average_effects([made_up(torch.full((3, 2), v), (0, 1), k) for v, k in ((0.3, "mlp"), (0.5, "attn"))])
    last = frame[(frame.role == "last token") & (frame.layer == 1)].set_index("kind")["mean"]
    assert last["mlp"] == pytest.approx(0.2)
    assert last["attn"] == pytest.approx(0.4)


def test_no_traces_and_traces_of_two_models_are_refused():
    with pytest.raises(ValueError, match="traces is empty"):
        rl.average_effects([])
    with pytest.raises(ValueError, match="different numbers of layers"):
        rl.average_effects([made_up(torch.zeros(3, 2), (0, 1)), made_up(torch.zeros(3, 4), (0, 1))])


def test_approximate_effects_are_called_so():
    exact = made_up(torch.full((3, 2), 0.3), (0, 1))
    approximate = made_up(torch.full((3, 2), 0.3), (0, 1), method="attribution")
    assert set(rl.average_effects([exact, approximate]).kind) == {"resid", "resid (attribution)"}


def test_severed_effects_are_not_averaged_with_whole_ones():
    whole = made_up(torch.full((3, 2), 0.3), (0, 1))
    severed = made_up(torch.full((3, 2), 0.2), (0, 1), severed=("mlp",))
    means = rl.average_effects([whole, severed]).groupby("kind", sort=False)["mean"]
    assert list(means.groups) == ["resid", "resid, mlp severed"]
    assert means.nunique().eq(1).all()


def test_different_windows_of_one_kind_are_not_averaged():
    one = made_up(torch.full((3, 2), 0.3), (0, 1), "mlp")
    with pytest.raises(ValueError, match="different windows or metrics"):
        rl.average_effects([one, made_up(torch.full((3, 2), 0.3), (0, 1), "mlp", window=5)])


def test_total_effect_is_clean_minus_corrupted():
    frame = rl.locate.average_total_effect([made_up(torch.zeros(3, 2), (0, 1))] * 3)
    assert frame.iloc[0].to_dict() == pytest.approx(
        {"kind": "resid", "mean": 0.8, "ci_low": 0.8, "ci_high": 0.8, "n": 3}
    )
