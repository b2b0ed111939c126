"""Covariances as ROME's code writes them: sums in an .npz, read without pickle."""

import numpy as np
import pytest
import torch

import rome_lens as rl
from rome_lens.edit import load_published_covariance

NAME = "transformer.h.17.mlp.c_proj_float32_mom2_100000.npz"


def stats(total: np.ndarray, count: int = 50) -> dict[str, object]:
    """What `save_cached_state` of util/runningstats.py puts into the file."""
    return {
        "mom2.constructor": "util.runningstats.SecondMoment()",
        "mom2.count": count,
        "mom2.mom2": total,
        "sample_size": 100_000,
    }


def test_the_mean_of_the_sums_with_layer_tokens_and_where_it_came_from(tmp_path):
    keys = np.random.RandomState(0).randn(50, 6).astype(np.float32)
    folder = tmp_path / "wikipedia_stats"
    folder.mkdir()
    np.savez(folder / NAME, **stats(keys.T @ keys))
    found = load_published_covariance(folder / NAME, model="gpt2-xl")
    np.testing.assert_allclose(found.second_moment.numpy(), keys.T @ keys / 50, rtol=1e-5)
    assert (found.layer, found.tokens, found.model) == (17, 50, "gpt2-xl")
    assert found.corpus == f"wikipedia_stats/{NAME}"
    assert found.fingerprint is None
    assert load_published_covariance(folder / NAME, layer=3, corpus="mine").layer == 3


def test_it_is_used_like_any_other(tmp_path, tiny):
    collected = rl.collect_covariance(tiny, [1], texts="The Eiffel Tower is in Paris. " * 60, tokens=300)[1].shrunk(0.3)
    np.savez(tmp_path / "a.1.npz", **stats(collected.second_moment.numpy() * 300, 300))
    request = rl.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
    options = {"config": rl.RomeConfig(contexts=["{}"], steps=2), "on_unhealthy": "ignore", "progress": False}
    found = rl.rome(tiny, request, covariance=load_published_covariance(tmp_path / "a.1.npz"), **options).updates[0]
    expected = rl.rome(tiny, request, covariance=collected, **options).updates[0]
    torch.testing.assert_close(found.left, expected.left, atol=1e-4, rtol=1e-3)


def test_pickle_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return pytest.fail, ("a pickle was run",)

    np.savez(tmp_path / NAME, **stats(np.array([Evil()], dtype=object)))
    with pytest.raises(rl.errors.FormatError, match=r"holds no sum of k kT .*is object of shape \[1\].*never read"):
        load_published_covariance(tmp_path / NAME)
    (tmp_path / "null_space_project.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(rl.errors.FormatError, match=r"not a zip file.*Pickled files \(.pt\) are never read"):
        load_published_covariance(tmp_path / "null_space_project.pt", layer=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mean": np.eye(3)}, r"lacks \['mom2.count', 'mom2.mom2'\] and has \['mean.npy'\]"),
        (stats(np.eye(3), 0), "mom2.count is 0, expected how many keys there are"),
        (stats(np.ones(3)), r"mom2.mom2 is float64 of shape \[3\], expected floats \[d_mlp, d_mlp\]"),
    ],
)
def test_another_archive_is_refused(tmp_path, content, message):
    np.savez(tmp_path / NAME, **content)
    with pytest.raises(rl.errors.FormatError, match=message):
        load_published_covariance(tmp_path / NAME)


def test_an_archive_that_would_fill_memory_is_refused(tmp_path):
    np.savez_compressed(tmp_path / NAME, **stats(np.zeros((1000, 1000))))
    with pytest.raises(rl.errors.FormatError, match="mom2.mom2 would take 8000128 bytes"):
        load_published_covariance(tmp_path / NAME)


def test_what_is_missing_is_said(tmp_path):
    np.savez(tmp_path / "sums.npz", **stats(np.eye(3)))
    with pytest.raises(ValueError, match=r"layer is None, and the name sums.npz holds none, expected layer=17, say"):
        load_published_covariance(tmp_path / "sums.npz")
    with pytest.raises(FileNotFoundError, match="expected an .npz file"):
        load_published_covariance(tmp_path / "none.npz", layer=1)
    np.savez(tmp_path / "sums.npz", **stats(np.arange(9.0).reshape(3, 3)))
    with pytest.raises(rl.errors.CovarianceError, match="not symmetric"):
        load_published_covariance(tmp_path / "sums.npz", layer=1)
