"""Key covariances: equal to a plain mean, kept whole on disk, refused for another model or layer."""

import pytest
import torch
from jaxtyping import TypeCheckError

import rome_lens as rl
from rome_lens.models import key_name
from tests.tiny import CORPUS

TEXTS = [CORPUS, CORPUS.upper(), CORPUS[::-1]]


def plain_second_moment(model, layer: int, texts: str, tokens: int, length: int) -> torch.Tensor:
    ids = model.tokenizer(texts, add_special_tokens=False)["input_ids"][:tokens]
    total = torch.zeros(model.cfg.d_mlp, model.cfg.d_mlp, dtype=torch.float64)
    before = [model.tokenizer.bos_token_id] if model.cfg.default_prepend_bos else []
    for start in range(0, tokens, length):
        row = torch.tensor([before + ids[start : start + length]])
        keys = model.run_with_cache(row)[1][key_name(layer)][0, len(before) :].detach().double()
        total += keys.T @ keys
    return (total / tokens).float()


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama-gqa", True)])
def test_equals_the_plain_mean_over_pieces(tiny_model, family, bos):
    model = tiny_model(family, bos=bos)
    found = rl.collect_covariance(model, layers=[2, 0], texts=[CORPUS], tokens=140, sequence_length=32, progress=False)
    assert list(found) == [2, 0]
    for layer, covariance in found.items():
        plain = plain_second_moment(model, layer, CORPUS, 140, 32)
        assert covariance.tokens == 140
        assert torch.allclose(covariance.second_moment, plain, rtol=1e-4, atol=1e-6)


def test_result_does_not_depend_on_the_batch_size_or_on_where_texts_are_cut(tiny):
    whole = rl.collect_covariance(tiny, [1], texts="".join(TEXTS), tokens=300, sequence_length=32, progress=False)
    pieces = rl.collect_covariance(
        tiny, [1], texts=TEXTS, tokens=300, sequence_length=32, tokens_per_batch=1, progress=False
    )
    assert torch.allclose(whole[1].second_moment, pieces[1].second_moment, rtol=1e-3, atol=1e-5)


def test_no_more_text_is_read_than_is_needed(tiny):
    def endless():
        while True:
            yield CORPUS

    assert rl.collect_covariance(tiny, [0], texts=endless(), tokens=500, progress=False)[0].tokens == 500


def test_too_little_text_is_said(tiny):
    with pytest.raises(ValueError, match=r"The texts hold \d+ tokens, but 100000 were asked for"):
        rl.collect_covariance(tiny, [0], texts=CORPUS, tokens=100_000, progress=False)


def test_bad_arguments_are_refused(tiny):
    with pytest.raises(ValueError, match="layers is empty"):
        rl.collect_covariance(tiny, [], texts=CORPUS)
    with pytest.raises(ValueError, match="layer is 9, but gpt2 has layers 0 to 2"):
        rl.collect_covariance(tiny, [9], texts=CORPUS)
    with pytest.raises(ValueError, match="tokens is 0"):
        rl.collect_covariance(tiny, [0], texts=CORPUS, tokens=0)


def test_keys_that_are_not_finite_are_refused(tiny_model):
    import copy

    broken = copy.deepcopy(tiny_model("gpt2"))
    broken.blocks[0].mlp.W_in.data[0, 0] = float("inf")
    with pytest.raises(rl.CovarianceError, match="Keys of layer 0 are not finite"):
        rl.collect_covariance(broken, [0], texts=CORPUS, tokens=50, progress=False)


def test_solve_inverts(tiny):
    covariance = rl.collect_covariance(tiny, [1], texts=TEXTS * 4, tokens=1500, progress=False)[1]
    keys = torch.randn(2, tiny.cfg.d_mlp, generator=torch.Generator().manual_seed(0))
    solution = covariance.solve(keys).double()
    assert torch.allclose(solution @ covariance.second_moment.double(), keys.double(), atol=1e-3)
    assert torch.allclose(covariance.solve(keys[1]).double(), solution[1], rtol=1e-5)


def test_a_singular_covariance_says_how_much_text_it_needs(tiny):
    covariance = rl.KeyCovariance.from_matrix(torch.zeros(128, 128), layer=1, tokens=3)
    with pytest.raises(rl.CovarianceError, match=r"layer 1 is singular: 3 tokens for 128 dimensions.*1280 tokens"):
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
    with pytest.raises((rl.CovarianceError, TypeCheckError), match=message):
        rl.KeyCovariance.from_matrix(matrix, layer=0, tokens=10)


def test_another_layer_width_or_model_is_refused(tiny, tiny_model):
    covariance = rl.collect_covariance(tiny, [1], texts=CORPUS, tokens=50, progress=False)[1]
    covariance.check(tiny, 1)
    with pytest.raises(rl.CovarianceError, match="is that of layer 1, but layer 2 is to be edited"):
        covariance.check(tiny, 2)
    with pytest.raises(rl.CovarianceError, match=r"128 wide \(gpt2\), but the keys of llama are 64 wide"):
        covariance.check(tiny_model("llama"), 1)
    with pytest.raises(rl.CovarianceError, match=r"collected on another model \(gpt2\).*cosine"):
        covariance.check(tiny_model("gpt2", seed=1), 1)


def test_an_edit_of_the_layer_or_another_dtype_does_not_make_it_another_model(tiny):
    import copy

    covariance = rl.collect_covariance(tiny, [1], texts=CORPUS, tokens=50, progress=False)[1]
    other = copy.deepcopy(tiny)
    other.blocks[1].mlp.W_out.data.mul_(3)
    assert covariance.check(other, 1) is None
    assert covariance.check(copy.deepcopy(tiny).to(torch.bfloat16), 1) is None


def test_saved_and_loaded_covariances_are_alike(tiny, tmp_path):
    covariance = rl.collect_covariance(tiny, [1], texts=CORPUS, tokens=50, corpus="a test", progress=False)[1]
    covariance.save(tmp_path / "c.safetensors")
    loaded = rl.KeyCovariance.load(tmp_path / "c.safetensors")
    assert torch.equal(loaded.second_moment, covariance.second_moment)
    assert torch.equal(loaded.probe, covariance.probe)
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
    with pytest.raises(rl.FormatError, match="damaged or is not a safetensors file"):
        rl.KeyCovariance.load(path)
    whole[-2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(rl.FormatError, match="do not fit their checksum"):
        rl.KeyCovariance.load(path)


def test_an_existing_file_is_kept(tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        rl.KeyCovariance.from_matrix(torch.eye(8), layer=0, tokens=10).save(tmp_path / "c")
    assert (tmp_path / "c").read_text() == "mine"
