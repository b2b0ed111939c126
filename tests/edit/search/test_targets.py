"""Targets of batch edits: kept, read back, gone on with after a kill, and refused where they do not belong."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import rome_lens as rl
from rome_lens.edit.search import targets as module
from tests.edit.methods.test_batch import FAR, REQUESTS, edit_of, found, targets_of


def same(a: rl.edit.MemitTargets, b: rl.edit.MemitTargets, **close) -> bool:
    tensors = [(x.vector, y.vector, x.initial, y.initial) for x, y in zip(a.values, b.values, strict=True)]
    facts = [(t.layer, t.contexts, dict(t.search), t.requests) for t in (a, b)]
    return facts[0] == facts[1] and all(torch.allclose(w, x) and torch.allclose(y, z) for w, x, y, z in tensors)


def test_saved_and_loaded_targets_are_the_same(tiny, tmp_path):
    targets = found(tiny)
    targets.save(tmp_path / "z.safetensors")
    loaded = rl.edit.MemitTargets.load(tmp_path / "z.safetensors")
    assert same(loaded, targets)
    assert [value.nll for value in loaded.values] == [value.nll for value in targets.values]
    with pytest.raises(FileExistsError, match="exists already"):
        targets.save(tmp_path / "z.safetensors")


def test_a_search_that_was_stopped_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    """What was found before the stop is not searched again, and the result is that of an undisturbed search."""
    monkeypatch.setattr(module, "_ON_A_CPU", 1)
    search, calls = module.optimise_values, []

    def stopped_at(limit: int):
        def optimise(model, layer, requests, *rest, **options):
            if len(calls) == limit:
                raise KeyboardInterrupt
            calls.append(requests)
            return search(model, layer, requests, *rest, **options)

        return optimise

    out = tmp_path / "search"
    monkeypatch.setattr(module, "optimise_values", stopped_at(2))
    with pytest.raises(KeyboardInterrupt):
        targets_of(tiny, out=out)
    with safe_open(out / "checkpoint.safetensors", framework="pt") as opened:
        assert len(opened.get_tensor("vectors")) == 2
    monkeypatch.setattr(module, "optimise_values", stopped_at(3))
    resumed = targets_of(tiny, out=out)
    assert [list(part) for part in calls] == [[request] for request in REQUESTS]
    assert same(resumed, targets_of(tiny, out=out))
    monkeypatch.setattr(module, "optimise_values", search)
    assert same(resumed, found(tiny))


def test_a_folder_gives_the_requests_that_are_asked_for_in_their_order(tiny, tmp_path):
    out = tmp_path / "search"
    every = targets_of(tiny, out=out)
    some = targets_of(tiny, REQUESTS[::-2], out=out)
    assert some.requests == REQUESTS[::-2]
    assert [value.nll for value in some.values] == [value.nll for value in every.values[::-2]]


def test_a_folder_of_another_search_or_model_is_refused(tiny, tiny_model, tmp_path):
    out = tmp_path / "search"
    targets_of(tiny, out=out)
    with pytest.raises(rl.errors.FormatError, match=r"begun with \{'search.steps': 40\}, but \{'search.steps': 41\}"):
        config = rl.MemitConfig(**(FAR | {"steps": 41}))
        rl.edit.memit_targets(tiny, REQUESTS, layer=1, config=config, out=out, progress=False)
    with pytest.raises(rl.errors.FormatError, match=r"begun with \{'layer': 1\}, but \{'layer': 2\}"):
        targets_of(tiny, layer=2, out=out)
    with pytest.raises(rl.errors.FormatError, match="begun with {'weights': .*edits reverted"):
        targets_of(tiny_model("gpt2", seed=1), out=out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoint.safetensors").write_text("something")
    with pytest.raises(rl.errors.FormatError, match="damaged"):
        targets_of(tiny, out=tmp_path / "other")


def test_targets_of_an_edited_model_or_of_other_requests_are_refused(tiny):
    targets = found(tiny)
    edit = edit_of(tiny, "memit", targets=targets)
    with edit.applied(tiny), pytest.raises(rl.errors.EditError, match="or revert its edit"):
        edit_of(tiny, "memit", targets=targets)
    with pytest.raises(ValueError, match="they are for 3 other requests"):
        edit_of(tiny, "memit", REQUESTS[:2], targets=targets)
    with pytest.raises(ValueError, match="the contexts are others"):
        edit_of(tiny, "memit", targets=replace(targets, contexts=("{}",)))


def test_broken_files_of_targets_are_refused(tiny, tmp_path):
    targets = replace(found(tiny), requests=REQUESTS[:2])
    targets.save(tmp_path / "z.safetensors")
    with pytest.raises(rl.errors.FormatError, match=r"vectors is \[3, 32\] .*, expected \[2, 32\]"):
        rl.edit.MemitTargets.load(tmp_path / "z.safetensors")
    replace(found(tiny), search={}).save(tmp_path / "z.safetensors", overwrite=True)
    with pytest.raises(rl.errors.FormatError, match=r"no whole targets .*token"):
        rl.edit.MemitTargets.load(tmp_path / "z.safetensors")
