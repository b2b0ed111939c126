"""Work on items: in turn here, or on two Ray workers of this machine, with the same results whatever dies."""

import gc
import importlib.util
import os
import warnings
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

import rome_lens as rl
from rome_lens.engine import open_workers
from tests import ray_cases
from tests.evaluate.test_sequence import RECORDS, noise, same


@pytest.fixture(scope="module")
def cluster():
    """Ray with room for two workers, which are told nothing that a user would see."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray drops its processes without waiting for them
        ray.shutdown()
        gc.collect()


@pytest.fixture
def one_thread():
    """As Ray's workers have it: sums of floats depend on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


on_ray = partial(open_workers, engine="ray", workers=2)
run = partial(rl.run_evaluation, progress=False)


def test_in_this_process_items_are_done_in_turn(tiny):
    seen = []
    with open_workers(tiny) as spread:
        results = spread(lambda model, item: (model is tiny, seen.append(item)), "ab")
        assert next(results) == (0, (True, None))
        assert seen == ["a"]
        assert list(results) == [(1, (True, None))]


def test_workers_that_cannot_be_had_are_told(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(rl.UnavailableError, match=r"pip install 'rome-lens\[distributed\]'"):
        run(tiny, RECORDS, {"noise": noise}, out=tmp_path, engine="ray", workers=2)
    assert not any(tmp_path.iterdir())


def test_more_workers_than_the_cluster_has_room_for_are_refused(tiny, cluster):
    for workers, gpus in ((0, 0.0), (3, 0.0), (1, 1.0)):
        asked = f"workers is {workers} with {gpus:g} GPUs each, but the cluster has 2 CPUs"
        with pytest.raises(ValueError, match=asked), on_ray(tiny, workers=workers, gpus_per_worker=gpus):
            pass


def test_each_worker_loads_a_model_by_its_name_and_uses_one_thread(tiny_folder, cluster, monkeypatch):
    with on_ray(tiny_folder("gpt2")) as spread:
        found = dict(spread(ray_cases.name_and_threads, "abc"))
    assert found == {i: (item, "gpt2", int(os.environ.get("OMP_NUM_THREADS", 1))) for i, item in enumerate("abc")}


def test_the_items_of_a_worker_that_died_are_done_again_and_none_twice(tiny, cluster, tmp_path):
    with on_ray(tiny) as spread:
        found = list(spread(partial(ray_cases.die_on_three, marker=tmp_path / "died"), range(7)))
    assert (tmp_path / "died").exists()
    assert sorted(found) == [(i, i * i) for i in range(7)]


def test_what_an_item_raises_is_raised_here_and_one_that_always_kills_is_named(tiny, cluster):
    with on_ray(tiny) as spread:
        with pytest.raises(ValueError, match="no a"):
            list(spread(ray_cases.refuse, ["a"]))
        with pytest.raises(RuntimeError, match="Item 0 could not be done: its worker died 4 times"):
            list(spread(ray_cases.die_always, ["b"]))
    with on_ray("nowhere") as spread, pytest.raises(ValueError, match="There is no model 'nowhere'"):
        list(spread(ray_cases.refuse, ["a"]))


@pytest.mark.usefixtures("cluster", "one_thread")
def test_an_evaluation_on_two_workers_of_which_one_dies_equals_one_in_this_process(tiny, weights_of, tmp_path):
    before = weights_of(tiny)
    methods = {"noise": noise}
    here = run(tiny, RECORDS, methods, out=tmp_path / "here")
    dying = {"noise": ray_cases.dying(noise, tmp_path / "died")}
    there = run(tiny, RECORDS, dying, out=tmp_path / "there", engine="ray", workers=2)
    assert (tmp_path / "died").exists()
    pd.testing.assert_frame_equal(there, here)
    parts = [pd.read_parquet(path) for path in Path(tmp_path / "there").glob("*.parquet")]
    assert sum(map(len, parts)) == len(here)
    assert same(tiny, before)
