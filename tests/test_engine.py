"""Work on items: in turn here, or on two Ray workers of this machine, with the same results whatever dies."""

import gc
import importlib.util
import json
import os
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import pandas as pd
import pytest
import torch

import rome_lens as rl
from rome_lens.engine import open_workers
from rome_lens.models.kinds import HAS_HOOKED
from rome_lens.storage import checkpoint
from tests import ray_cases
from tests.edit.covariance.test_collect import TEXTS, stopped_after
from tests.evaluate.test_sequence import RECORDS, noise
from tests.locate.test_many_facts import FACTS, OPTIONS


@pytest.fixture(scope="module")
def cluster():
    """Ray with room for three workers, which says nothing."""
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # else its workers wait for every other process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray drops its processes without waiting for them
        try:
            for left in (2, 1, 0):  # Ray gives itself 30 s to start, which a busy machine may not be enough for
                try:
                    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
                    break
                except Exception:
                    ray.shutdown()
                    if not left:
                        raise
            yield
        finally:
            ray.shutdown()
            gc.collect()


@pytest.fixture(scope="module")
def workers(cluster, tiny_model, tiny_folder):
    """Two workers, opened once: to start one takes longer than all that they do here.

    They are given the model itself, where it can be copied.
    """
    with on_ray(tiny_model("gpt2") if HAS_HOOKED else tiny_folder("gpt2")) as spread:
        yield spread


@pytest.fixture
def on_workers(workers, monkeypatch):
    """What asks for Ray gets these two."""

    @contextmanager
    def opened(model, *, engine="local", workers=1, spread=workers, **_):
        if engine == "ray":
            assert workers == 2
            yield spread
        else:
            with open_workers(model) as here:
                yield here

    for module in ("evaluate.scoring", "locate.many_facts", "edit.covariance.collect"):
        monkeypatch.setattr(f"rome_lens.{module}.open_workers", opened)


@pytest.mark.usefixtures("cluster")
def test_a_model_that_cannot_be_copied_is_refused(tiny, monkeypatch):
    """As TransformerLens 4 can leave a Bridge."""
    monkeypatch.setattr(tiny, "held", ContextVar("held"), raising=False)
    message = "cannot be copied to other processes.*Give the name or the folder"
    with pytest.raises(ValueError, match=message), on_ray(tiny):
        pass


@pytest.fixture
def one_thread():
    """As Ray's workers have it: sums of floats depend on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


on_ray = partial(open_workers, engine="ray", workers=2)
run = partial(rl.score_edits, progress=False)


def test_in_this_process_items_are_done_in_turn(tiny):
    seen = []
    with open_workers(tiny) as spread:
        results = spread(lambda model, item: (model is tiny, seen.append(item)), "ab")
        assert next(results) == (0, (True, None))
        assert seen == ["a"]
        assert list(results) == [(1, (True, None))]


def test_workers_that_cannot_be_had_are_told(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(rl.errors.UnavailableError, match=r"pip install 'rome-lens\[distributed\]'"):
        run(tiny, RECORDS, {"noise": noise}, out=tmp_path, engine="ray", workers=2)
    assert not any(tmp_path.iterdir())


def test_more_workers_than_the_cluster_has_room_for_are_refused(tiny, cluster):
    for workers, gpus in ((4, 0.0), (1, 1.0)):
        asked = f"workers is {workers} with {gpus:g} GPUs each, but the cluster has 3 CPUs"
        with pytest.raises(ValueError, match=asked), on_ray(tiny, workers=workers, gpus_per_worker=gpus):
            pass


def test_a_worker_has_its_own_model_and_one_thread_and_what_it_raises_is_raised_here(tiny_folder, cluster):
    with on_ray(tiny_folder("gpt2"), workers=1) as spread:
        found = list(spread(ray_cases.name_and_threads, "abc"))
        with pytest.raises(ValueError, match="no a"):
            list(spread(ray_cases.refuse, ["a"]))
    threads = int(os.environ.get("OMP_NUM_THREADS", 1))
    assert found == [(i, (item, "gpt2", threads)) for i, item in enumerate("abc")]


@pytest.mark.usefixtures("on_workers", "one_thread")
def test_an_evaluation_on_two_workers_of_which_one_dies_equals_one_in_this_process(tiny, tmp_path):
    """Killed with SIGKILL in the middle of a record, it is replaced; nothing is lost and nothing is there twice."""
    here = run(tiny, RECORDS, {"noise": noise}, out=tmp_path / "here")
    dying = {"noise": partial(ray_cases.noise_or_death, marker=tmp_path / "died")}
    there = run(tiny, RECORDS, dying, out=tmp_path / "there", engine="ray", workers=2)
    assert (tmp_path / "died").exists()
    pd.testing.assert_frame_equal(there, here)
    lines = (tmp_path / "there" / "rows.jsonl").read_text().splitlines()
    assert sum(len(json.loads(line)["row"]["rows"]) for line in lines if '"row"' in line) == len(here)


@pytest.mark.usefixtures("on_workers", "one_thread")
def test_facts_traced_on_two_workers_are_those_traced_in_this_process(tiny, tmp_path):
    """The same traces in the same order, kept in the folder; with a fact that the model gets wrong."""
    wrong = rl.Fact("The capital of {} is", "Italy", answer="Apple")
    facts, options = [FACTS[0], wrong, *FACTS[1:]], {"kinds": ["resid", "mlp"], **OPTIONS}
    here = rl.trace_facts(tiny, facts, **options)
    there = rl.trace_facts(tiny, facts, out=tmp_path / "traces", engine="ray", workers=2, **options)
    assert [trace.to_dict() for trace in there.traces] == [trace.to_dict() for trace in here.traces]
    pd.testing.assert_frame_equal(there.not_predicted, here.not_predicted)
    assert len(there.not_predicted) == 1
    assert len(rl.locate.load_traces(tmp_path / "traces")) == len(here.traces) == 6


@pytest.mark.usefixtures("on_workers", "one_thread")
def test_covariances_collected_on_two_workers_are_those_collected_in_this_process(tiny, tmp_path, monkeypatch):
    """Also where the one begins and the other goes on: shards are whole pieces, in the order of the text."""
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN_SAVES", 0)
    options = {"layers": [2, 0], "tokens": 700, "sequence_length": 16, "tokens_per_batch": 64, "progress": False}
    here = rl.collect_covariance(tiny, texts=TEXTS * 9, **options)
    path = tmp_path / "sums"
    with pytest.raises(KeyboardInterrupt):
        rl.collect_covariance(tiny, texts=stopped_after(TEXTS * 9, 2, KeyboardInterrupt()), out=path, **options)
    assert (path / "checkpoint.safetensors").is_file()
    for out in (None, path):
        there = rl.collect_covariance(tiny, texts=TEXTS * 9, out=out, engine="ray", workers=2, **options)
        for layer, found in there.items():
            assert torch.allclose(found.second_moment, here[layer].second_moment, rtol=1e-6, atol=1e-6)
            assert found.half_difference == pytest.approx(here[layer].half_difference)
            assert found.tokens == here[layer].tokens == 700
