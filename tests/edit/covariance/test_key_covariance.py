"""Key covariances: solved with, reported on, shrunk, kept whole on disk, refused for another model or layer."""

import copy
import pickle
from importlib import resources

import pytest
import torch
from jaxtyping import TypeCheckError

import rome_lens as rl
from rome_lens.edit.covariance.diagnostics import median_cosine
from rome_lens.models import fingerprint_cosine
from tests.edit.artifact.test_edit import made_up
from tests.tiny import CORPUS

TEXTS = [CORPUS, CORPUS.upper(), CORPUS[::-1]]


def test_solve_inverts(tiny):
    covariance = rl.collect_covariance(tiny, [1], texts=TEXTS * 4, tokens=1500, progress=False)[1]
    keys = torch.randn(2, tiny.cfg.d_mlp, generator=torch.Generator().manual_seed(0))
    solution = covariance.solve(keys).double()
    assert torch.allclose(solution @ covariance.second_moment.double(), keys.double(), atol=1e-3)
    assert torch.allclose(covariance.solve(keys[1]).double(), solution[1], rtol=1e-5)


def test_products_of_whitened_keys_are_those_by_the_inverse():
    covariance = drawn(32, 500)
    keys = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).double()
    white = covariance.whitened(keys)
    torch.testing.assert_close(white @ white.T, keys @ covariance.solve(keys).T)
    torch.testing.assert_close(covariance.whitened(keys[0]), white[0])


def test_what_another_process_gets_does_not_hold_the_factors():
    """They are as large as the matrix, twice, and may be on a GPU that the other one lacks."""
    covariance = rl.KeyCovariance.from_matrix(2 * torch.eye(64), layer=1, tokens=640)
    sent = len(pickle.dumps(covariance))
    key = torch.ones(64)
    assert torch.equal(covariance.solve(key), key / 2)
    assert covariance.directions_below(3.0).shape == (64, 64)
    assert len(pickle.dumps(covariance)) == sent
    assert torch.equal(pickle.loads(pickle.dumps(covariance)).solve(key), key / 2)


def test_a_singular_covariance_says_how_much_text_it_needs(tiny):
    covariance = rl.KeyCovariance.from_matrix(torch.zeros(128, 128), layer=1, tokens=3)
    with pytest.raises(
        rl.errors.CovarianceError, match=r"layer 1 is singular: 3 tokens for 128 dimensions.*1280 tokens"
    ):
        covariance.solve(torch.ones(128))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        # The shape check of jaxtyping, which is on in the tests, may speak first.
        (torch.ones(3, 4), r"shape \(3, 4\), expected \[d_mlp, d_mlp\]|Type-check error"),
        (torch.full((3, 3), float("nan")), "not finite"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "not symmetric"),
    ],
)
def test_matrices_that_are_no_second_moments_are_refused(matrix, message):
    with pytest.raises((rl.errors.CovarianceError, TypeCheckError), match=message):
        rl.KeyCovariance.from_matrix(matrix, layer=0, tokens=10)


def test_another_layer_width_or_model_is_refused(tiny, tiny_model):
    covariance = rl.collect_covariance(tiny, [1], texts=CORPUS, tokens=50, progress=False)[1]
    covariance.check(tiny, 1)
    with pytest.raises(rl.errors.CovarianceError, match="is that of layer 1, but layer 2 is to be edited"):
        covariance.check(tiny, 2)
    with pytest.raises(rl.errors.CovarianceError, match=r"128 wide \(gpt2\), but the keys of llama are 64 wide"):
        covariance.check(tiny_model("llama"), 1)
    with pytest.raises(rl.errors.CovarianceError, match=r"collected on another model \(gpt2\).*cosine"):
        covariance.check(tiny_model("gpt2", seed=1), 1)


def test_an_edit_of_the_layer_or_another_dtype_does_not_make_it_another_model(tiny):
    covariance = rl.collect_covariance(tiny, [1], texts=CORPUS, tokens=50, progress=False)[1]
    other = copy.deepcopy(tiny)
    other.blocks[1].mlp.W_out.data.mul_(3)
    assert covariance.check(other, 1) is None
    assert covariance.check(copy.deepcopy(tiny).to(torch.bfloat16), 1) is None


def test_edits_of_earlier_layers_do_not_make_it_another_model(tiny, tiny_model):
    covariance = rl.collect_covariance(tiny, [2], texts=CORPUS, tokens=50, progress=False)[2]
    with made_up(tiny, layers=(0, 1), scale=0.15).applied(tiny):
        assert fingerprint_cosine(tiny, 2, covariance.fingerprint) < 0.98
        covariance.check(tiny, 2)
    other = tiny_model("gpt2", seed=1)
    with made_up(other).applied(other), pytest.raises(rl.errors.CovarianceError, match="collected on another model"):
        covariance.check(other, 2)


def test_saved_and_loaded_covariances_are_alike(tiny, tmp_path):
    covariance = rl.collect_covariance(tiny, [1], texts=CORPUS, tokens=50, corpus="a test", progress=False)[1]
    covariance.save(tmp_path / "c.safetensors")
    loaded = rl.KeyCovariance.load(tmp_path / "c.safetensors")
    assert torch.equal(loaded.second_moment, covariance.second_moment)
    assert torch.equal(loaded.fingerprint, covariance.fingerprint)
    assert repr(loaded) == repr(covariance)
    assert (loaded.layer, loaded.tokens, loaded.model, loaded.corpus, loaded.dtype) == (
        1,
        50,
        "gpt2",
        "a test",
        "float32",
    )


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    rl.KeyCovariance.from_matrix(torch.eye(8), layer=0, tokens=10).save(path)
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:-3])
    with pytest.raises(rl.errors.FormatError, match="damaged or is not a safetensors file"):
        rl.KeyCovariance.load(path)
    whole[-2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(rl.errors.FormatError, match="does not fit its checksum"):
        rl.KeyCovariance.load(path)


def test_an_existing_file_is_kept(tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        rl.KeyCovariance.from_matrix(torch.eye(8), layer=0, tokens=10).save(tmp_path / "c")
    assert (tmp_path / "c").read_text() == "mine"


def drawn(width: int, tokens: int, *, seed: int = 0) -> rl.KeyCovariance:
    """The second moment of normal keys whose spread falls from 1 to a tenth over the dimensions."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(tokens, width, generator=generator, dtype=torch.float64) * torch.linspace(1, 0.1, width).double()
    return rl.KeyCovariance.from_matrix(keys.T @ keys / tokens, layer=1, tokens=tokens)


def test_effective_rank_of_equal_directions_is_their_number():
    """Roy and Vetterli's rank is k for k equal eigenvalues, and less than the rank for unequal ones."""
    flat = torch.diag(torch.cat([torch.ones(5), torch.zeros(7)]))
    report = rl.KeyCovariance.from_matrix(flat, layer=0, tokens=100).report()
    assert report.effective_rank == pytest.approx(5)
    assert report.condition_number == pytest.approx(2**52)
    assert (report.tokens, report.width, report.shrinkage) == (100, 12, 0)
    assert (report.half_difference, report.half_cosine) == (None, None)
    uneven = rl.KeyCovariance.from_matrix(torch.diag(torch.tensor([4.0, 1.0])), layer=0, tokens=9).report()
    shares = torch.tensor([0.8, 0.2])
    assert uneven.effective_rank == pytest.approx((-(shares * shares.log()).sum()).exp().item())
    assert uneven.condition_number == pytest.approx(4)


@pytest.mark.parametrize("tokens", [201, 2_000])
def test_the_condition_number_is_that_of_all_eigenvalues(tokens):
    """It is found without them, from the Cholesky factor."""
    covariance = drawn(200, tokens)
    values = torch.linalg.eigvalsh(covariance.second_moment.double())
    assert covariance.condition_number == pytest.approx((values[-1] / values[0]).item(), rel=1e-6)


def test_halves_agree_better_with_more_tokens(tiny):
    """The halves' difference falls as tokens grow, and their directions come together."""
    generator = torch.Generator().manual_seed(0)
    words = CORPUS.split()
    picks = torch.randint(len(words), (20_000,), generator=generator)
    texts = " ".join(words[i] for i in picks)
    few, many = (
        rl.collect_covariance(tiny, [1], texts=texts, tokens=tokens, sequence_length=32, progress=False)[1].report()
        for tokens in (1_000, 16_000)
    )
    assert many.half_difference < 0.5 * few.half_difference
    assert few.half_cosine < many.half_cosine < 1


def test_a_report_survives_saving(tiny, tmp_path):
    covariance = rl.collect_covariance(tiny, [1], texts=TEXTS, tokens=800, sequence_length=32, progress=False)[1]
    assert covariance.half_cosine is not None
    covariance.shrunk().save(tmp_path / "c.safetensors")
    assert rl.KeyCovariance.load(tmp_path / "c.safetensors").report() == covariance.shrunk().report()


def test_the_shipped_covariance_says_how_well_it_is_determined():
    path = resources.files("rome_lens") / "data" / "builtin" / "smollm2-135m.covariance.safetensors"
    report = rl.KeyCovariance.load(str(path)).report()
    assert (report.tokens, report.width, report.shrinkage) == (102_400, 1536, 0)
    assert 0 < report.half_difference < 0.2
    assert report.half_cosine > 0.9
    assert 1 < report.effective_rank < 1536
    assert report.condition_number < 1e6


def test_what_ships_is_given_by_layer_and_an_error_says_how_to_collect_the_rest(tiny):
    model = copy.deepcopy(tiny)
    model.cfg.model_name = "smollm2-135m"
    assert list(rl.edit.builtin_covariances(model)) == list(rl.edit.covariance.builtin(model, layers=[4])) == [4]
    with pytest.raises(
        ValueError, match=r"layers \[1, 2\] of smollm2-135m, only that of layer 4. .*layers=\[1, 2, 4\]"
    ):
        rl.edit.builtin_covariances(model, layers=[1, 2, 4])
    with pytest.raises(ValueError, match="has layers 0 to 2"):  # to collect its covariance would be no advice
        rl.edit.builtin_covariances(model, layers=[4, 99])
    with pytest.raises(ValueError, match="none ships for gpt2"):
        rl.edit.builtin_covariances(tiny)


def test_few_tokens_are_singular_until_shrunk(tiny):
    """Fewer tokens than dimensions: solving is refused and says what to do, and that works."""
    covariance = rl.collect_covariance(tiny, [1], texts=CORPUS, tokens=60, progress=False)[1]
    key = torch.randn(tiny.cfg.d_mlp, generator=torch.Generator().manual_seed(0))
    with pytest.raises(rl.errors.CovarianceError, match=r"60 tokens for 128 dimensions.*covariance\.shrunk\(\)"):
        covariance.solve(key)
    steady = covariance.shrunk()
    assert 0 < steady.shrinkage <= 1
    assert torch.allclose(steady.second_moment.double() @ steady.solve(key).double(), key.double(), atol=1e-3)
    assert steady.check(tiny, 1) is None
    assert covariance.shrinkage == 0


def test_shrinking_keeps_trace_and_directions_and_falls_to_nothing():
    """(1 - a) C + a tr(C)/d I has C's trace and eigenvectors, a falls as 1/n, and a = 1 leaves only the trace."""
    intensities = [drawn(24, tokens).shrunk().shrinkage for tokens in (12, 48, 480, 4800, 48_000)]
    assert intensities == sorted(intensities, reverse=True)
    assert intensities[-1] == pytest.approx(intensities[-2] / 10, rel=0.1)
    assert intensities[-1] < 1e-3
    covariance = drawn(24, 48)
    shrunk = covariance.shrunk(0.25).second_moment.double()
    matrix = covariance.second_moment.double()
    assert shrunk.trace() == pytest.approx(matrix.trace().item(), rel=1e-5)
    assert torch.allclose(shrunk @ matrix, matrix @ shrunk, atol=1e-6)
    assert torch.allclose(covariance.shrunk(1.0).second_moment, torch.eye(24) * matrix.trace().float() / 24)
    assert torch.equal(covariance.shrunk(0.0).second_moment, covariance.second_moment)
    assert covariance.shrunk(0.5).shrunk(0.5).shrinkage == pytest.approx(0.75)


def test_shrinking_comes_nearer_to_the_truth_where_keys_are_few():
    """What oracle approximating shrinkage is for: a smaller error than the plain mean's, over draws."""
    truth = torch.diag(torch.linspace(1, 0.1, 24).double() ** 2).float()
    errors = []
    for seed in range(20):
        covariance = drawn(24, 12, seed=seed)
        errors.append([(each.second_moment - truth).norm() for each in (covariance, covariance.shrunk())])
    plain, shrunk = torch.tensor(errors).mean(0)
    assert shrunk < 0.7 * plain


def test_an_intensity_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"intensity is 1\.5, expected a number from 0 to 1"):
        drawn(4, 10).shrunk(1.5)


def test_the_error_that_is_told_is_the_one_that_is_left():
    """Of keys whose true C is known: half of one half's squared error, a quarter of what lies between both."""
    generator, width = torch.Generator().manual_seed(0), 40
    scale = torch.linspace(0.2, 3, width, dtype=torch.float64)

    def drawn(count: int) -> torch.Tensor:
        return torch.randn(count, width, generator=generator, dtype=torch.float64) * scale

    probe, told, left = drawn(16), [], []
    for _ in range(20):
        first, second = (half.T @ half / 1000 for half in (drawn(1000), drawn(1000)))
        cosine = median_cosine(first, second, probe)
        told.append(rl.edit.CovarianceReport(2000, width, 1.0, 1.0, None, cosine, 0.0).expected_error)
        left.append(1 - median_cosine((first + second) / 2, scale.square().diag(), probe))
    assert sum(told) == pytest.approx(sum(left), rel=0.2)
