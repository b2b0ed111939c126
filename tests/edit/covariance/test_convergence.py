"""Text is read until ROME's direction settles, and the error that is left is told."""

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.covariance.convergence import until_settled
from rome_lens.edit.covariance.diagnostics import median_cosine
from rome_lens.edit.covariance.sums import PartialSums
from rome_lens.storage import checkpoint
from tests.tiny import CORPUS

TEXTS = [CORPUS, CORPUS.upper(), CORPUS[::-1]] * 40
OPTIONS = {"layers": [0, 2], "sequence_length": 32, "tokens_per_batch": 64, "progress": False}


def drawn(count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    scale = torch.linspace(0.2, 3, width, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) * scale


def test_the_error_that_is_told_is_the_one_that_is_left():
    """Of keys whose true C is known: half of one half's squared error, a quarter of what lies between both."""
    generator, width = torch.Generator().manual_seed(0), 40
    truth = torch.diag(torch.linspace(0.2, 3, width, dtype=torch.float64) ** 2)
    probe = drawn(16, width, generator)
    told, left = [], []
    for _ in range(20):
        halves = [drawn(1000, width, generator) for _ in range(2)]
        first, second = (half.T @ half / 1000 for half in halves)
        cosine = median_cosine(first, second, probe)
        assert cosine is not None
        told.append(rl.edit.CovarianceReport(2000, width, 1.0, 1.0, None, cosine, 0.0).expected_error)
        left.append(1 - median_cosine((first + second) / 2, truth, probe))
    assert sum(told) == pytest.approx(sum(left), rel=0.2)


def test_it_stops_at_the_first_doubling_where_all_layers_agree():
    """Halves of ones agree at once, and of a random start only when the ones outweigh it."""
    width, step, seen = 4, 8, []
    partial = PartialSums(torch.zeros(1, 2, width, width, dtype=torch.float64), [0, 0])

    def steps():
        for number in range(100):
            noise = torch.randn(2, width, width, generator=torch.Generator().manual_seed(number))
            noise = noise @ noise.mT * (1 if number < 3 else 0)
            partial.add((4 * torch.eye(width) + noise)[None].double(), [4, 4])
            yield

    probe = torch.randn(1, 16, width, generator=torch.Generator().manual_seed(7))
    for _ in until_settled(steps(), partial, probe, tolerance=0.02, step=step):
        seen.append(sum(partial.tokens))
    first, second = (partial.sums[0, half] / partial.tokens[half] for half in (0, 1))
    assert 1 - median_cosine(first, second, probe[0]) <= 0.02
    assert seen[-1] in (16, 32, 64, 128, 256, 512), "2, 4, 8, ... times the width"
    assert 8 < seen[-1] < 800


def test_less_text_is_read_where_a_larger_tolerance_will_do(tiny):
    loose, strict = (
        rl.collect_covariance(tiny, texts=TEXTS, tokens=8000, tolerance=tolerance, **OPTIONS)
        for tolerance in (0.6, 0.3)
    )
    assert loose[0].tokens < strict[0].tokens < 8000
    for found, tolerance in ((loose, 0.6), (strict, 0.3)):
        assert all(1 - covariance.half_cosine <= tolerance for covariance in found.values())
        assert found[0].report().expected_error == (1 - found[0].half_cosine) / 4


def test_what_does_not_settle_is_said(tiny):
    with pytest.warns(rl.errors.EditWarning, match=r"After 600 tokens, .* expected at least 0.999"):
        found = rl.collect_covariance(tiny, texts=TEXTS, tokens=600, tolerance=0.001, **OPTIONS)
    assert found[2].tokens == 600
    with pytest.warns(rl.errors.EditWarning, match="a half is singular"):
        rl.collect_covariance(tiny, texts=CORPUS, tokens=100_000, tolerance=0.001, **OPTIONS)


def test_a_stopped_run_settles_where_an_unbroken_one_does(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN_SAVES", 0)
    whole = rl.collect_covariance(tiny, texts=TEXTS, tokens=8000, tolerance=0.3, **OPTIONS)
    texts = iter(TEXTS)

    def stopped():
        yield from (next(texts) for _ in range(4))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rl.collect_covariance(tiny, texts=stopped(), tokens=8000, tolerance=0.3, out=tmp_path, **OPTIONS)
    for _ in range(2):  # the second call finds all done
        resumed = rl.collect_covariance(tiny, texts=TEXTS, tokens=8000, tolerance=0.3, out=tmp_path, **OPTIONS)
        assert torch.equal(resumed[2].second_moment, whole[2].second_moment)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1.0, float("nan")])
def test_a_tolerance_without_sense_is_refused(tiny, tolerance):
    with pytest.raises(ValueError, match=r"tolerance is .* expected a number between 0 and 1"):
        rl.collect_covariance(tiny, texts=CORPUS, tokens=50, tolerance=tolerance, **OPTIONS)
