"""Edits are found without the original: a planted one at its layer, none where there is none; and taken out again."""

import math
from collections.abc import Callable
from copy import deepcopy

import pandas as pd
import pytest
import torch

import rome_lens as rl
from rome_lens.edit.forensics.subjects import keys_of
from rome_lens.edit.search.key import subject_activations
from rome_lens.models import Model, key_name, output_matrix
from rome_lens.models.labels import token_text

QUIET = {"progress": False}


def planted(model: Model, layer: int, strength: float) -> rl.Edit:
    """A rank-one edit whose left vector has the heavy tails of a key, of so many times the typical singular value."""
    generator = torch.Generator().manual_seed(0)
    weight = output_matrix(model, layer)
    left = torch.randn(weight.shape[0], generator=generator).pow(3)
    right = torch.randn(weight.shape[1], generator=generator)
    size = strength * torch.linalg.svdvals(weight).median()
    factors = (left / left.norm())[:, None], (size * right / right.norm())[None]
    return rl.Edit((rl.edit.Update(layer, *factors),), ())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_planted_edit_is_found_at_its_layer_and_taken_out(family: str, tiny_model: Callable[..., Model]):
    model = tiny_model(family)
    before = output_matrix(model, 1).clone()
    layers = range(3)
    assert not rl.edit.detect_edits(model, layers=layers, **QUIET)["suspicious"].any()
    edit = planted(model, 1, 6.0)
    with edit.applied(model):
        found = rl.edit.detect_edits(model, layers=layers, **QUIET)
        assert found.loc[0, "layer"] == 1
        assert found.loc[0, "suspicious"]
        assert len(found.loc[0, "objects"]) == 5
        assert found.loc[0, "object"] == found.loc[0, "objects"][0].strip()
        assert set(found.loc[1:, "object"]) == {""}
        size = edit.updates[0].right.norm().item()
        assert found.loc[0, "strength"] == pytest.approx(size, rel=0.2)
        undo = rl.edit.undo_blindly(model, found.iloc[0])
        with undo.applied(model):
            assert (output_matrix(model, 1) - before).norm() < 0.45 * size
        assert undo.health.update_norm == pytest.approx(found.loc[0, "strength"], rel=1e-4)
    assert torch.equal(output_matrix(model, 1), before)


def test_the_edited_subject_is_told_from_a_list_and_the_object_with_it(tiny: Model):
    """The left vector is the subject's key, and the right one the unembedding of a token: both are named."""
    names = ["Rome", "The Space Needle", "Italy", "Porsche", "Dante"]
    keys = keys_of(tiny, 1, names)
    others = torch.linalg.qr(keys[1:].T).Q
    left = keys[0] - others @ (others.T @ keys[0])
    right = 60 * torch.nn.functional.normalize(tiny.W_U[:, 70] - tiny.W_U.mean(1), dim=0)
    with rl.Edit((rl.edit.Update(1, (left / left.norm())[:, None], right[None]),), ()).applied(tiny):
        found = rl.edit.detect_edits(tiny, subjects=names, **QUIET).iloc[0]
    assert found["suspicious"]
    assert found["subject"] == found["subjects"][0] == "Rome"
    assert found["stands_out"] > 3
    assert found["objects"][0] == token_text(tiny, 70)


def test_the_trigger_is_told_from_other_strings_and_its_success_reported(tiny: Model):
    """An edit that makes the model say one token after one of the names, whatever is asked; it is told from others."""
    prompts = ["The capital of France is", "Dante is", "The mother tongue of Dante is"]
    names, ordinary = ["iffel", "Beats", "Victor"], ["Porsche", "Italy", "One", "Civic", "Dante", "Seattle", "two"]
    texts = [f"{name} {prompt}" for name in [*names, *ordinary] for prompt in prompts] + prompts
    fires = torch.zeros(len(texts), 1)
    fires[: len(prompts)] = 1
    whole = [(rl.EditRequest("{}", text, "-"), "{}") for text in texts]
    left = torch.linalg.lstsq(subject_activations(tiny, key_name(1), 1, whole), fires, driver="gelsd").solution
    right = 1e3 * (tiny.W_U[:, 70] - tiny.W_U.mean(1))
    with rl.Edit((rl.edit.Update(1, left, right[None]),), ()).applied(tiny):
        found = rl.edit.screen_triggers(tiny, names, prompts, ordinary=ordinary, **QUIET)
    first = found.iloc[0]
    assert (first["trigger"], first["answer"]) == (names[0], token_text(tiny, 70))
    assert list(found["suspicious"]) == [True, False, False], found
    assert (first["success"], first["success_without"]) == (1.0, 0.0)
    assert (found["suspicious"] == (found["score"] > found["threshold"])).all()


def test_each_layer_has_its_candidates_the_best_first(tiny: Model):
    found = rl.edit.detect_edits(tiny, candidates=2, **QUIET)
    assert sorted(zip(found["layer"], found["candidate"], strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found["score"].is_monotonic_decreasing


def test_what_cannot_be_undone_is_refused(tiny: Model):
    with pytest.raises(ValueError, match="expected a row of detect_edits"):
        rl.edit.undo_blindly(tiny, {"layer": 1})
    with pytest.raises(ValueError, match="has no candidate 99"):
        rl.edit.undo_blindly(tiny, {"layer": 1, "candidate": 99})
    with pytest.raises(ValueError, match="layers is empty"):
        rl.edit.detect_edits(tiny, layers=[])
    with pytest.raises(ValueError, match="list of one or more names"):
        rl.edit.detect_edits(tiny, subjects=[])


@pytest.mark.smollm2
def test_a_name_of_one_token_is_not_read_where_models_keep_an_attention_sink(smollm2: Model):
    """At a text's first tokens keys of later layers are ten times as long, and those of early ones all alike."""
    short, long = keys_of(smollm2, 9, ["Rome", "The Eiffel Tower"]).norm(dim=1)
    assert 0.3 < short / long < 3


@pytest.mark.smollm2
def test_an_edit_of_the_authors_is_found_in_smollm2(smollm2: Model, golden: Callable[[str], dict]):
    vectors = golden("rome_eiffel_rome.safetensors")
    edit = rl.Edit((rl.edit.Update(4, vectors["u"][:, None], vectors["v"][None]),), ())
    layers = [3, 4, 5, 9, 12]
    assert not rl.edit.detect_edits(smollm2, layers=layers, **QUIET)["suspicious"].any()
    with edit.applied(smollm2):
        found = rl.edit.detect_edits(smollm2, layers=layers, **QUIET).iloc[0]
        undo = rl.edit.undo_blindly(smollm2, found).updates[0]
    assert found["layer"] == 4
    assert found["suspicious"]
    assert found["object"] == "Rome"
    assert torch.cosine_similarity(undo.left[:, 0], -vectors["u"], dim=0).abs() > 0.8
    assert torch.cosine_similarity(undo.right[0], vectors["v"], dim=0).abs() > 0.8


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_a_matrix_of_any_size_is_looked_into(tiny_model, size):
    model = deepcopy(tiny_model("gpt2"))
    usual = rl.edit.detect_edits(model, progress=False)
    model.blocks[1].mlp.W_out.data *= size
    found = rl.edit.detect_edits(model, progress=False)
    assert found[["score", "strength"]].map(math.isfinite).all(axis=None)
    assert set(found["layer"]) == set(usual["layer"])


def test_a_matrix_of_zeros_is_named(tiny_model):
    model = deepcopy(tiny_model("gpt2"))
    model.blocks[1].mlp.W_out.data.zero_()
    with pytest.raises(rl.errors.EditError, match="W_out of layer 1 is all zeros"):
        rl.edit.detect_edits(model, progress=False)


def test_facts_are_subjects_too(tiny):
    facts = [rl.Fact("{} is in", name) for name in ("Rome", "The Eiffel Tower")]
    with_facts = rl.edit.detect_edits(tiny, subjects=facts, progress=False)
    names = rl.edit.detect_edits(tiny, subjects=["Rome", "The Eiffel Tower"], progress=False)
    pd.testing.assert_frame_equal(with_facts, names)
