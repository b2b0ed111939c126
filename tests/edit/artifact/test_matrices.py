"""Edits of any matrix of an MLP: in hooks, files, Hugging Face's classes and adapters alike."""

import json
import struct

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import rome_lens as rl
from rome_lens.models import find_matrix
from rome_lens.storage.tensors import seal
from tests.edit.artifact.test_edit import REQUEST, same
from tests.edit.artifact.test_elsewhere import unlike
from tests.edit.artifact.test_hooks import NORMED, normed

MATRICES = {"gpt2": ("in", "out"), "gptj": ("in", "out"), "neox": ("in", "out"), "llama-gqa": ("in", "gate", "out")}
IN_BRIDGES = {"gpt2": ("in", "out"), "opt": ("in", "out"), "gemma2": ("in", "gate", "out")}


def of_matrices(model, matrices, layers=(0, 2)) -> rl.Edit:
    generator = torch.Generator().manual_seed(0)
    updates = []
    for layer in layers:
        for matrix in matrices:
            d_in, d_out = find_matrix(model, layer, matrix).values.shape
            left, right = torch.randn(d_in, 2, generator=generator), torch.randn(2, d_out, generator=generator)
            updates.append(rl.edit.Update(layer, 0.3 * left, right, matrix=matrix))
    return rl.Edit(tuple(updates), (REQUEST,), "made up")


def check_hooks(model, edit, tokens) -> torch.Tensor:
    """Hooks and edited weights agree to 1e-4 of the logits' size. Gives the edited model's logits."""
    plain = model(tokens)
    with edit.applied(model):
        edited = model(tokens)
    with model.hooks(fwd_hooks=edit.hooks(model)):
        hooked = model(tokens)
    assert (edited - plain).abs().max() > 1e-2 * plain.abs().max()
    assert (hooked - edited).abs().max() < 1e-4 * edited.abs().max()
    return edited


@pytest.mark.parametrize("family", MATRICES)
@torch.no_grad()
def test_hooks_and_hugging_face_models_do_what_edited_weights_do(tiny_model, hugging_face, weights_of, tokens, family):
    """Each matrix is changed alone, in its own parameter, and all is back bit for bit."""
    model, hf_model = tiny_model(family), hugging_face(family)
    edit, before = of_matrices(model, MATRICES[family]), weights_of(model)
    edited = check_hooks(model, edit, tokens)
    hf_before = {name: value.clone() for name, value in hf_model.state_dict().items()}
    with edit.applied(hf_model):
        torch.testing.assert_close(hf_model(tokens).logits, edited, atol=1e-4, rtol=1e-4)
        assert len(unlike(hf_model, hf_before)) == len(edit.updates)
    assert unlike(hf_model, hf_before) == []
    handle = edit.apply(model)
    assert len([name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]) == len(
        edit.updates
    )
    handle.revert()
    assert same(model, before)


@pytest.mark.hooked
@pytest.mark.parametrize("option", NORMED)
@torch.no_grad()
def test_hooks_of_blocks_that_norm_their_mlps_output(tokens, option):
    model = normed(option)
    check_hooks(model, of_matrices(model, ("in", "gate", "out")), tokens)


@pytest.mark.parametrize("family", IN_BRIDGES)
@torch.no_grad()
def test_a_bridge_has_the_same_matrices(tiny_folder, tokens, family):
    folder = tiny_folder(family)
    hf_model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    edit = of_matrices(bridge, IN_BRIDGES[family])
    edited = check_hooks(bridge, edit, tokens)
    with edit.applied(AutoModelForCausalLM.from_pretrained(folder).eval()) as plain:
        torch.testing.assert_close(plain(tokens).logits, edited, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for names that will go
@torch.no_grad()
def test_an_adapter_holds_every_matrix(tiny_model, hugging_face, tokens, tmp_path):
    peft = pytest.importorskip("peft")
    model, hf_model = tiny_model("llama-gqa"), hugging_face("llama-gqa")
    edit = of_matrices(model, ("in", "gate", "out"))
    edit.to_peft(tmp_path, hf_model)
    with edit.applied(model):
        edited = model(tokens)
    adapted = peft.PeftModel.from_pretrained(hf_model, tmp_path)
    torch.testing.assert_close(adapted(tokens).logits, edited, atol=1e-4, rtol=1e-4)
    delta = edit.to_state_dict_delta(hugging_face("llama-gqa"))
    assert {name.split(".")[-2] for name in delta} == {"up_proj", "gate_proj", "down_proj"}


def test_files_tell_the_matrices(tiny_model, tmp_path):
    """What is saved is loaded."""
    model = tiny_model("llama-gqa")
    edit = of_matrices(model, ("gate", "out"))
    edit.save(tmp_path / "edit.safetensors")
    loaded = rl.Edit.load(tmp_path / "edit.safetensors")
    assert [(u.layer, u.matrix) for u in loaded.updates] == [(0, "gate"), (0, "out"), (2, "gate"), (2, "out")]
    assert all(torch.equal(a.left, b.left) for a, b in zip(edit.updates, loaded.updates, strict=True))
    assert [(-u.left).sum() for u in edit.updates] == [u.left.sum() for u in (-edit).updates]
    assert [u.matrix for u in (edit + edit).updates] == ["gate", "out", "gate", "out"]
    path = tmp_path / "edit.safetensors"
    spoilt = path.read_bytes().replace(rb"[\"gate\", \"out\", \"gate\"", rb"[\"gate\", \"out\", \"gatt\"")
    path.write_bytes(spoilt)
    seal(path, json.loads(spoilt[8 : 8 + struct.unpack("<Q", spoilt[:8])[0]])["__metadata__"]["sha256"])
    with pytest.raises(rl.errors.FormatError, match="is not a whole edit"):
        rl.Edit.load(path)


def test_matrices_that_are_not_there_are_refused(tiny, tiny_model, hugging_face):
    gate = of_matrices(tiny_model("llama-gqa"), ("gate",))
    with pytest.raises(ValueError, match="has no single matrix 'gate'"):
        gate.apply(tiny)
    with pytest.raises(rl.errors.EditError, match=r"c_fc|gate_proj"):
        gate.apply(hugging_face("gpt2"))


@pytest.mark.hooked
def test_matrices_that_hold_a_norms_gain_are_refused(tiny_model, tiny_folder):
    gate = of_matrices(tiny_model("llama-gqa"), ("gate",))
    folded = rl.load_model(str(tiny_folder("llama-gqa")), device="cpu")
    folded.process_weights_(fold_ln=True)
    with pytest.raises(ValueError, match="norms of .* are folded into its MLPs' matrix 'gate'"):
        gate.apply(folded)
    with pytest.raises(rl.errors.EditError, match="expected output matrices alone"):
        rl.evaluate.forecast_bleed_over(tiny_model("llama-gqa"), gate, ["One, two."])
