"""The closed forms of MEMIT, EMMET and AlphaEdit, against brute-force solutions of what they are to minimise."""

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.methods.closed_forms import alphaedit_factor, emmet_factor, memit_factor
from rome_lens.edit.search.key import subject_keys
from rome_lens.edit.search.value import optimise_value
from rome_lens.models import mlp_output
from tests.edit.methods.test_rome import CONTEXTS, REQUEST, covariance_of

WIDTH, OUT, REQUESTS = 12, 5, 4


def made_up(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


KEYS, MISSING = made_up(REQUESTS, WIDTH, 1), made_up(REQUESTS, OUT, 2)


def covariance(*, rank: int = WIDTH) -> rl.KeyCovariance:
    """Of keys in a subspace of so many dimensions, in float32."""
    keys = made_up(200, rank, 3) @ made_up(rank, WIDTH, 4)
    return rl.KeyCovariance.from_matrix(keys.T @ keys / len(keys), layer=0, tokens=len(keys))


@pytest.mark.parametrize("weight", [0.1, 10.0, 15_000.0])
def test_memit_is_the_minimum_of_its_least_squares(weight):
    """weight tr(DT C D) + |K D - R|^2, solved as one stacked least-squares problem with a root of C."""
    found = memit_factor(KEYS, covariance(), weight) @ MISSING
    root = torch.linalg.cholesky(covariance().second_moment.double()).T
    stacked = torch.cat([weight**0.5 * root, KEYS])
    plain = torch.linalg.lstsq(stacked, torch.cat([torch.zeros(WIDTH, OUT).double(), MISSING])).solution
    assert torch.allclose(found, plain, rtol=1e-7, atol=1e-12)


def test_emmet_solves_the_lagrange_equations():
    """C D = KT L and K D = R: the stationary point of tr(DT C D) / 2 under the constraints."""
    second_moment = covariance().second_moment.double()
    found = emmet_factor(KEYS, covariance()) @ MISSING
    system = torch.cat(
        [
            torch.cat([second_moment, -KEYS.T], dim=1),
            torch.cat([KEYS, torch.zeros(REQUESTS, REQUESTS).double()], dim=1),
        ]
    )
    plain = torch.linalg.solve(system, torch.cat([torch.zeros(WIDTH, OUT).double(), MISSING]))[:WIDTH]
    assert torch.allclose(found, plain, atol=1e-9)
    assert torch.allclose(KEYS @ found, MISSING, atol=1e-9)


def test_memit_tends_to_emmet_as_the_weight_vanishes():
    exact = emmet_factor(KEYS, covariance())
    distances = [(memit_factor(KEYS, covariance(), weight) - exact).norm().item() for weight in (1.0, 1e-2, 1e-4)]
    assert distances[0] > 50 * distances[1] > 50 * 50 * distances[2]


def test_emmet_of_one_request_is_romes_equation_2(tiny):
    config = rl.RomeConfig(contexts=CONTEXTS, constrain_bare_prompt=False)
    covariance = covariance_of(tiny)
    edit = rl.rome(tiny, REQUEST, covariance=covariance, config=config, on_unhealthy="ignore", progress=False)
    key = subject_keys(tiny, 1, REQUEST, CONTEXTS).mean(0)
    value = optimise_value(tiny, 1, REQUEST, CONTEXTS, config, progress=False).vector
    missing = (value - mlp_output(tiny, 1, key))[None]
    change = edit.updates[0].left @ edit.updates[0].right
    for factor in (
        emmet_factor(key[None].double(), covariance),
        memit_factor(key[None].double(), covariance, 1e-9),
    ):
        assert torch.allclose(factor.float() @ missing, change, rtol=1e-4, atol=1e-6)


def test_alphaedit_leaves_the_answers_to_preserved_keys_and_solves_its_normal_equations():
    """C has rank 5 of 12: its own keys' answers stay. D (P K KT + ridge I) = R KT P, as the authors' code has it."""
    preserved = made_up(5, WIDTH, 4)
    found = alphaedit_factor(KEYS, covariance(rank=5), 1e-3, 0.5) @ MISSING
    assert (preserved @ found).norm() < 1e-5 * (KEYS @ found).norm()
    projector = torch.eye(WIDTH).double() - torch.linalg.pinv(preserved) @ preserved
    system = projector @ KEYS.T @ KEYS + 0.5 * torch.eye(WIDTH)
    plain = torch.linalg.solve(system, projector @ KEYS.T @ MISSING)
    assert torch.allclose(found, plain, atol=1e-5)


def test_alphaedit_answers_as_exactly_as_its_ridge_is_small():
    ridges = (1.0, 1e-2, 1e-4)
    missed = [
        (KEYS @ alphaedit_factor(KEYS, covariance(rank=5), 1e-3, ridge) @ MISSING - MISSING).norm() for ridge in ridges
    ]
    assert missed[0] > missed[1] > missed[2]
    assert missed[2] < 1e-2 * MISSING.norm()


def test_keys_that_depend_on_each_other_are_refused_by_emmet_and_weighed_by_memit():
    twice = torch.cat([KEYS, KEYS[:1] * (1 + 1e-9)])
    with pytest.raises(
        rl.errors.EditError, match=r"keys of these 5 requests depend on each other in layer 0 .*use memit"
    ):
        emmet_factor(twice, covariance())
    answers = twice @ memit_factor(twice, covariance(), 1e-6) @ torch.cat([MISSING, -MISSING[:1]])
    assert answers[[0, 4]].norm() < 1e-3 * MISSING.norm()


def test_alphaedit_without_a_null_space_says_how_large_the_eigenvalues_are():
    with pytest.raises(
        rl.errors.CovarianceError, match=r"No eigenvalue .* below null_space_threshold=1e-09 .* Raise the thr"
    ):
        alphaedit_factor(KEYS, covariance(), 1e-9, 1.0)
