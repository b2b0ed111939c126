"""The bank of subjects, and which of them an edit would reach most."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

import rome_lens as rl
from rome_lens.data.readers.subjects import load_subjects
from rome_lens.edit.methods import near
from tests.edit.methods.test_batch import METHODS, covariances_of
from tests.edit.methods.test_rome import CONTEXTS, REQUEST, covariance_of


@pytest.fixture(autouse=True)
def towers(monkeypatch, tmp_path):
    """A bank of towers, and a cache of the test's own."""
    monkeypatch.setattr(near, "load_subjects", lambda: load_subjects("Tower"))
    monkeypatch.setattr(near.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    return tmp_path / "rome_lens" / "keys"


def nearest(model, **options) -> pd.DataFrame:
    return near.near_subjects(model, REQUEST, covariances={1: covariance_of(model)}, **({"least": 0.0} | options))


def test_the_bank_holds_thousands_of_subjects_many_of_which_end_alike():
    subjects = load_subjects()
    texts = [fact.subject for fact in subjects]
    assert len(texts) == len(set(texts)) > 2000
    last = pd.Series([text.split()[-1] for text in texts]).value_counts()
    assert (last >= 10).sum() > 40
    assert all(fact.prompt.count("{}") == 1 for fact in subjects)
    with pytest.raises(ValueError, match="No subjects with the word 'Towel' ship, expected one of Tower, "):
        load_subjects("Towel")


def test_the_share_of_each_is_what_the_forecast_says(tiny):
    """Of an edit whose k* is the bare prompt's key."""
    frame = nearest(tiny, most=3)
    assert list(frame["share"]) == sorted(frame["share"], reverse=True)
    config = rl.RomeConfig(contexts=["{}"], steps=3)
    options = {"covariance": covariance_of(tiny), "config": config, "on_unhealthy": "ignore", "progress": False}
    edit = rl.rome(tiny, REQUEST, **options)
    forecast = rl.evaluate.forecast_bleed_over(tiny, edit, list(frame["prompt"]))
    for row in frame.to_dict("records"):
        assert row["prompt"] == f"{row['subject']} is located in the city of"
        last = len(tiny.to_tokens(row["subject"])[0]) - 1
        found = forecast[(forecast["prompt"] == row["prompt"]) & (forecast["position"] == last)]
        assert found["size"].item() == pytest.approx(row["share"], rel=1e-3)


def test_the_edited_subject_and_the_excluded_are_not_among_them_and_there_is_room_for_all(tiny):
    names = list(nearest(tiny)["subject"])
    assert names
    assert not any("Eiffel" in name for name in names)
    assert names[0] not in list(nearest(tiny, exclude=names[:1])["subject"])
    places = {
        tuple(row[:n])
        for p in nearest(tiny)["prompt"]
        for row in [tiny.to_tokens(p)[0].tolist()]
        for n in range(1, len(row) + 1)
    }
    assert len(places) <= 128 // 4
    assert nearest(tiny, least=1e9).empty
    with pytest.raises(ValueError, match="most is 0"):
        nearest(tiny, most=0)


def test_keys_are_computed_once_for_a_model_and_kept(tiny, tiny_model, towers, monkeypatch):
    first = nearest(tiny)
    (kept,) = towers.iterdir()
    read = near.subject_activations
    monkeypatch.setattr(near, "subject_activations", lambda *a, **o: read(*a, **o) if len(a[3]) < 10 else 1 / 0)
    pd.testing.assert_frame_equal(nearest(tiny), first)
    with pytest.raises(ZeroDivisionError):
        nearest(tiny_model("gpt2", seed=1))
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(ZeroDivisionError):
        nearest(tiny)


@pytest.mark.parametrize("name", ["rome", *METHODS])
def test_auto_preserves_the_nearest(tiny, name):
    options = {"on_unhealthy": "ignore", "progress": False, "preserve": "auto"}
    if name == "rome":
        edit = rl.rome(
            tiny, REQUEST, covariance=covariance_of(tiny), config=rl.RomeConfig(contexts=CONTEXTS, steps=2), **options
        )
        assert set(edit.config["preserve"]) <= set(nearest(tiny)["prompt"])
    else:
        method, config = METHODS[name]
        config = replace(config, contexts=CONTEXTS, steps=2)
        edit = method(tiny, REQUEST, covariances=covariances_of(tiny), config=config, **options)
    assert edit.config["preserve"]
    assert all("Tower is located in the city of" in text for text in edit.config["preserve"])
    assert edit.health.preserve_growth is not None  # with a ridge it may be below 1


def test_auto_at_another_token_is_refused(tiny):
    config = rl.RomeConfig(contexts=CONTEXTS, token="last")
    with pytest.raises(ValueError, match=r"preserve is 'auto' and token is 'last', expected 'subject_end'"):
        rl.rome(tiny, REQUEST, covariance=covariance_of(tiny), config=config, preserve="auto", progress=False)


def test_a_cache_that_cannot_be_written_only_costs_time(tiny, towers):
    towers.parent.mkdir(parents=True)
    towers.write_text("in the way")
    assert len(nearest(tiny))
    assert torch.is_tensor(near.kept_bank_keys(tiny, 1, load_subjects("Tower")))
