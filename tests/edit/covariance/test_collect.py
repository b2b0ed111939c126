"""Collecting key covariances: equal to a plain mean, in one pass, and going on where a stopped run was."""

import copy
import itertools
from contextlib import ExitStack

import pytest
import torch

import rome_lens as rl
from analyses.plain.covariance import plain_second_moment
from rome_lens.edit.covariance import sums
from rome_lens.models import key_name
from rome_lens.storage import checkpoint
from tests.tiny import CORPUS

TEXTS = [CORPUS, CORPUS.upper(), CORPUS[::-1]]


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama-gqa", True)])
def test_equals_the_plain_mean_over_pieces(tiny_model, family, bos):
    model = tiny_model(family, bos=bos)
    found = rl.collect_covariance(model, layers=[2, 0], texts=[CORPUS], tokens=140, sequence_length=32, progress=False)
    assert list(found) == [2, 0]
    ids = model.tokenizer(CORPUS, add_special_tokens=False)["input_ids"][:140]
    for layer, covariance in found.items():
        plain = plain_second_moment(model, layer, ids, 32)
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
    broken = copy.deepcopy(tiny_model("gpt2"))
    broken.blocks[0].mlp.W_in.data[0, 0] = float("inf")
    with pytest.raises(rl.errors.CovarianceError, match="Keys of layer 0 are not finite"):
        rl.collect_covariance(broken, [0], texts=CORPUS, tokens=50, progress=False)


def test_blocks_after_the_last_wanted_one_are_not_run(tiny):
    """One pass for layers 0 and 1 of three runs each of these blocks once a batch, and the third never."""
    ran: list[int] = []
    with ExitStack() as stack:
        for i, block in enumerate(tiny.blocks):
            stack.callback(block.register_forward_hook(lambda *_, i=i: ran.append(i)).remove)
        rl.collect_covariance(tiny, [0, 1], texts=CORPUS, tokens=100, progress=False)
    probes = {0: 2, 1: 1, 2: 0}
    assert {i: ran.count(i) for i in range(3)} == {i: probes[i] + (i < 2) for i in range(3)}


def test_halves_of_alike_texts_agree_and_one_piece_has_no_halves(tiny):
    """The same piece over and over makes equal halves; a single piece has no second half to compare with."""
    text = CORPUS[:200]
    length = len(tiny.tokenizer(text, add_special_tokens=False)["input_ids"])
    options = {"sequence_length": length, "progress": False}
    alike = rl.collect_covariance(tiny, [1], texts=[text] * 4, tokens=4 * length, **options)[1]
    assert alike.half_difference == pytest.approx(0, abs=1e-6)
    alone = rl.collect_covariance(tiny, [1], texts=[text], tokens=length, **options)[1]
    assert alone.half_difference is None
    assert alone.half_cosine is None


def test_halves_are_the_even_and_the_odd_pieces(tiny):
    """The difference between halves is that of plain means over every other piece, whatever the batches are."""
    ids = tiny.tokenizer(CORPUS, add_special_tokens=False)["input_ids"][:96]
    keys = [
        tiny.run_with_cache(torch.tensor([ids[i : i + 32]]))[1][key_name(1)][0].detach().double() for i in (0, 32, 64)
    ]
    even, odd = torch.cat([keys[0], keys[2]]), keys[1]
    first, second = even.T @ even / 64, odd.T @ odd / 32
    expected = (first - second).norm() / ((first + second) / 2).norm()
    for size in (1, 64, 4096):
        found = rl.collect_covariance(
            tiny, [1], texts=CORPUS, tokens=96, sequence_length=32, tokens_per_batch=size, progress=False
        )
        assert found[1].half_difference == pytest.approx(expected.item(), rel=1e-4)


class Stopped(BaseException):
    """Stands for a kill or a keyboard interrupt."""


def stopped_after(texts, count: int, error: BaseException):
    yield from itertools.islice(texts, count)
    raise error


OPTIONS = {"layers": [0, 2], "tokens": 3000, "sequence_length": 32, "tokens_per_batch": 64, "progress": False}


@pytest.mark.parametrize("error", [Stopped(), KeyboardInterrupt()], ids=["kill", "keyboard"])
def test_a_stopped_run_goes_on_with_the_same_result(tiny, tmp_path, monkeypatch, error):
    """Bit for bit what an unbroken run gives, and the pieces that were done are not run again."""
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN_SAVES", 0)
    whole = rl.collect_covariance(tiny, texts=TEXTS * 9, **OPTIONS)
    path = tmp_path / "new folder" / "sums"
    with pytest.raises(type(error)):
        rl.collect_covariance(tiny, texts=stopped_after(TEXTS * 9, 4, error), out=path, **OPTIONS)
    assert (path / "checkpoint.safetensors").is_file()
    runs = []
    monkeypatch.setattr(
        sums, "mlp_keys", lambda *args, _keys=sums.mlp_keys: runs.append(args[1].numel()) or _keys(*args)
    )
    resumed = rl.collect_covariance(tiny, texts=TEXTS * 9, out=path, **OPTIONS)
    assert 0 < sum(runs) < 2000
    for layer in OPTIONS["layers"]:
        assert torch.equal(resumed[layer].second_moment, whole[layer].second_moment)
        assert resumed[layer].report() == whole[layer].report()
    runs.clear()
    again = rl.collect_covariance(tiny, texts=TEXTS * 9, out=path, **OPTIONS)
    assert not runs, "a finished checkpoint needs no pass"
    assert torch.equal(again[2].second_moment, whole[2].second_moment)


@pytest.fixture
def begun(tiny, tmp_path):
    """A checkpoint of a finished collection."""
    path = tmp_path / "sums"
    rl.collect_covariance(tiny, texts=TEXTS * 9, out=path, **OPTIONS)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 400}, r"was begun with \{'tokens': 3000\}, but \{'tokens': 400\} was given"),
        ({"layers": [2]}, r"was begun with \{'layers': \[0, 2\]\}"),
        ({"sequence_length": 16}, "was begun with {'sequence_length': 32}"),
        ({"tokens_per_batch": 32}, "was begun with {'tokens_per_batch': 64}"),
        ({"texts": TEXTS[1:] * 9}, "was begun with other texts than these"),
        ({"texts": TEXTS}, "was begun with other texts than these"),
    ],
)
def test_a_checkpoint_of_other_arguments_or_texts_is_refused(tiny, begun, change, message):
    before = (begun / "checkpoint.safetensors").read_bytes()
    with pytest.raises(rl.errors.FormatError, match=message):
        rl.collect_covariance(tiny, out=begun, **({"texts": TEXTS * 9} | OPTIONS | change))
    assert (begun / "checkpoint.safetensors").read_bytes() == before


def test_an_iterator_that_was_read_from_cannot_resume(tiny, begun):
    texts = iter(TEXTS * 9)
    next(texts)
    with pytest.raises(rl.errors.FormatError, match="an iterator that was read from is no longer at its start"):
        rl.collect_covariance(tiny, texts=texts, out=begun, **OPTIONS)


def test_a_checkpoint_of_another_model_is_refused(tiny_model, begun):
    with pytest.raises(rl.errors.FormatError, match="was begun with {'weights': .* edits reverted"):
        rl.collect_covariance(tiny_model("gpt2", seed=1), texts=TEXTS * 9, out=begun, **OPTIONS)
    with pytest.raises(rl.errors.FormatError, match=r"begun with \{'model': 'gpt2', .* but \{'model': 'llama', "):
        rl.collect_covariance(tiny_model("llama"), texts=TEXTS * 9, out=begun, **OPTIONS)


def test_a_file_that_is_no_checkpoint_is_kept(tiny, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    rl.KeyCovariance.from_matrix(torch.eye(8), layer=0, tokens=10).save(path)
    before = path.read_bytes()
    with pytest.raises(
        rl.errors.FormatError, match="holds 'rome_lens key covariance 3', expected a 'rome_lens partial"
    ):
        rl.collect_covariance(tiny, texts=TEXTS * 9, out=tmp_path, **OPTIONS)
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder"):
        rl.collect_covariance(tiny, texts=TEXTS * 9, out=path, **OPTIONS)
    assert path.read_bytes() == before


def test_the_bar_tells_the_pass_and_goes_on_where_it_was(tiny, begun, capsys):
    """What a user sees: layers and passes, and a resumed collection's bar begins where it stopped."""
    rl.collect_covariance(tiny, texts=TEXTS * 9, out=begun, **(OPTIONS | {"progress": True}))
    shown = capsys.readouterr().err
    assert "covariance, layers [0, 2] in one pass" in shown
    assert "3000/3000" in shown
    assert " 0/3000 " not in shown
