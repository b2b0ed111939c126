"""Edits of lower rank: nearest in the metric of C, with what the cut costs."""

import pytest
import torch

import rome_lens as rl
from rome_lens.evaluate.likelihood import mean_log_probabilities
from tests.edit.artifact.test_edit import REQUEST

REQUESTS = [REQUEST, rl.EditRequest("{} is owned by", "Beats Music", "Apple")]


def made_up(layer: int = 1, rank: int = 6) -> rl.Edit:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(128, rank, generator=generator), torch.randn(rank, 32, generator=generator)
    small = rl.edit.Update(2, left[:, :1], 0.1 * right[:1])
    return rl.Edit((rl.edit.Update(layer, left, 0.1 * right), small), tuple(REQUESTS), "memit")


def covariance(layer: int = 1) -> rl.KeyCovariance:
    """Of keys that lie mostly in a few directions."""
    draws = torch.randn(400, 128, generator=torch.Generator().manual_seed(1)) * torch.linspace(3, 0.1, 128)
    return rl.KeyCovariance.from_matrix(draws.T @ draws / 400, layer=layer, tokens=400)


def lost(edit: rl.Edit, smaller: rl.Edit, second_moment: torch.Tensor) -> float:
    whole, cut = (each.updates[0].left @ each.updates[0].right for each in (edit, smaller))
    left_out = whole - cut
    return ((left_out.T @ second_moment @ left_out).trace() / (whole.T @ second_moment @ whole).trace()).item()


def test_no_edit_of_that_rank_is_nearer_on_ordinary_text(tiny):
    """The share that is said to be lost is what C says, and less than of any other cut; the small update stays."""
    edit, known = made_up(), covariance()
    found = rl.edit.cut_rank(tiny, edit, 2, covariances={1: known})
    assert [update.rank for update in found.edit.updates] == [2, 1]
    assert found.edit.updates[1] is edit.updates[1]
    least = lost(edit, found.edit, known.second_moment)
    assert found.lost.values.tolist() == [[1, "out", 6, pytest.approx(least, rel=1e-3)], [2, "out", 1, 0.0]]
    update, generator = edit.updates[0], torch.Generator().manual_seed(2)
    svd = torch.linalg.svd(update.left @ update.right)
    others = [(svd.U[:, :2] * svd.S[:2], svd.Vh[:2]), (update.left[:, :2], update.right[:2])]
    ours = found.edit.updates[0]
    for size in (1e-3, 1e-2, 1e-1):
        noise = size * torch.randn(128, 2, generator=generator), size * torch.randn(2, 32, generator=generator)
        others.append((ours.left + noise[0], ours.right + noise[1]))
    for factors in others:
        other = rl.Edit((rl.edit.Update(1, *factors),), ())
        assert lost(edit, other, known.second_moment) > least


def test_what_a_cut_costs_each_request_is_measured(tiny):
    found = rl.edit.cut_rank(tiny, made_up(), 1, covariances={1: covariance()})
    for column, edit in (("whole", made_up()), ("cut", found.edit)):
        with edit.applied(tiny):
            for i, request in enumerate(REQUESTS):
                continuation = rl.data.Continuation(request.text, request.target)
                (expected,) = mean_log_probabilities(tiny, [continuation])
                assert found.efficacy[column][i] == pytest.approx(expected.exp().item(), rel=1e-4)
    assert found.efficacy["whole"].tolist() != found.efficacy["cut"].tolist()


def test_an_edit_that_is_small_enough_stays_as_it_is_and_others_need_their_covariance(tiny):
    edit = made_up()
    assert rl.edit.cut_rank(tiny, edit, 6).edit is edit
    with pytest.raises(rl.errors.CovarianceError, match=r"no covariance of the layers \[1\]"):
        rl.edit.cut_rank(tiny, edit, 2, covariances={2: covariance(2)})
    with pytest.raises(rl.errors.CovarianceError, match="that of layer 2"):
        rl.edit.cut_rank(tiny, edit, 2, covariances={1: covariance(2)})
    with pytest.raises(ValueError, match="rank is 0"):
        rl.edit.cut_rank(tiny, edit, 0)


def test_inputs_of_other_matrices_are_cut_in_the_plain_norm(tiny):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(32, 5, generator=generator), torch.randn(5, 128, generator=generator)
    edit = rl.Edit((rl.edit.Update(1, left, right, matrix="in"),), ())
    (cut,) = rl.edit.cut_rank(tiny, edit, 3).edit.updates
    values = torch.linalg.svdvals(left @ right)
    assert torch.linalg.norm(left @ right - cut.left @ cut.right) == pytest.approx(values[3:].norm().item(), rel=1e-3)
