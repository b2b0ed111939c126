"""Edits as LoRA adapters: peft reads them, and its model answers as the edited one does."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import rome_lens as rl
from rome_lens.models import find_output_matrix
from tests.edit.artifact.test_edit import REQUEST, made_up
from tests.edit.artifact.test_elsewhere import unlike


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama-gqa"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for names that will go
@torch.no_grad()
def test_peft_reads_the_adapter_and_answers_as_the_edited_models_do(
    tiny_model, hugging_face, weights_of, tmp_path, tokens, family
):
    """Layers of unlike ranks; peft's and Hugging Face's agree to 1e-5 of the logits' size, the hooked one to 1e-4."""
    peft = pytest.importorskip("peft")
    model, hf_model = tiny_model(family), hugging_face(family)
    edit = made_up(model, layers=(0, 1)) + made_up(model, layers=(1,), seed=1)
    before = weights_of(hf_model)
    with edit.applied(model):
        hooked = model(tokens)
    with edit.applied(hf_model):
        edited = hf_model(tokens).logits
    edit.to_peft(tmp_path / "adapter", hf_model)
    assert unlike(hf_model, before) == []
    adapted = peft.PeftModel.from_pretrained(hf_model, tmp_path / "adapter")
    found, size = adapted(tokens).logits, edited.abs().max()
    assert (found - edited).abs().max() < 1e-5 * size
    torch.testing.assert_close(found, hooked, atol=1e-4, rtol=0)
    with adapted.disable_adapter():
        assert (adapted(tokens).logits - edited).abs().max() > 1e-2 * size
    assert sorted(adapted.targeted_module_names) == [find_output_matrix(hugging_face(family), i).module for i in (0, 1)]
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(tokens).logits, edited, atol=1e-4, rtol=1e-4)


def test_an_adapter_holds_the_factors_and_nothing_of_the_model(tiny, hugging_face, tmp_path):
    edit, hf_model = made_up(tiny, layers=(0, 2)) + made_up(tiny, layers=(2,), seed=1), hugging_face("gpt2")
    edit.to_peft(tmp_path, hf_model)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["transformer.h.0.mlp.c_proj", "transformer.h.2.mlp.c_proj"]
    assert (config["fan_in_fan_out"], config["lora_dropout"], config["bias"]) == (True, 0.0, "none")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 4
    for update, module in zip(edit.updates, config["target_modules"], strict=True):
        left = tensors[f"base_model.model.{module}.lora_A.weight"]
        right = tensors[f"base_model.model.{module}.lora_B.weight"]
        assert torch.equal(left[: update.rank], update.left.T)
        assert torch.equal(right[:, : update.rank], update.right.T)
        assert left[update.rank :].abs().sum() == right[:, update.rank :].abs().sum() == 0


def test_servers_find_one_rank_and_one_scale(tiny, hugging_face, tmp_path):
    """As vLLM's PEFTHelper and SGLang's LoRAConfig read the files: `r` and `lora_alpha` for all, no patterns."""
    edit = made_up(tiny, layers=(0, 2)) + made_up(tiny, layers=(2,), seed=1)
    edit.to_peft(tmp_path, hugging_face("gpt2"), max_rank=2)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    assert not {"rank_pattern", "alpha_pattern"} & set(config)
    shapes = {
        name.split(".")[-2]: value.shape for name, value in load_file(tmp_path / "adapter_model.safetensors").items()
    }
    assert shapes == {"lora_A": (2, 128), "lora_B": (32, 2)}
    with pytest.raises(rl.errors.EditError, match=r"of rank 2, but max_rank is 1\. .*cut_rank\(model, edit, 1\)"):
        edit.to_peft(tmp_path / "other", hugging_face("gpt2"), max_rank=1)
    with pytest.raises(ValueError, match="max_rank is 0"):
        edit.to_peft(tmp_path / "other", hugging_face("gpt2"), max_rank=0)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("matrix", ["in", "gate"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
@torch.no_grad()
def test_half_of_a_fused_matrix_gets_zeros_for_the_other_half(hugging_face, tmp_path, tokens, matrix):
    """SGLang puts the adapters of gate_proj and up_proj together, and wants both; a model without a gate has one."""
    peft = pytest.importorskip("peft")
    hf_model = hugging_face("llama-gqa")
    edit = rl.Edit((rl.edit.Update(1, torch.ones(32, 1), 0.1 * torch.ones(1, 64), matrix=matrix),), (REQUEST,))
    edit.to_peft(tmp_path / "adapter", hf_model)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in tensors} == {"gate_proj", "up_proj"}
    with edit.applied(hf_model):
        expected = hf_model(tokens).logits
    adapted = peft.PeftModel.from_pretrained(hf_model, tmp_path / "adapter")
    torch.testing.assert_close(adapted(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    if matrix == "in":
        wide = rl.Edit((rl.edit.Update(1, torch.ones(32, 1), torch.ones(1, 128), matrix="in"),), (REQUEST,))
        wide.to_peft(tmp_path / "plain", hugging_face("gpt2"))
        assert len(load_file(tmp_path / "plain" / "adapter_model.safetensors")) == 2


def test_an_adapter_is_not_overwritten_unasked_nor_written_for_a_model_it_does_not_fit(tiny, hugging_face, tmp_path):
    edit, hf_model = made_up(tiny), hugging_face("gpt2")
    (tmp_path / "adapter_config.json").write_text("mine")
    with pytest.raises(FileExistsError, match="adapter_config.json exists already"):
        edit.to_peft(tmp_path, hf_model)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]
    edit.to_peft(tmp_path, hf_model, overwrite=True)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 1
    with pytest.raises(rl.errors.EditError, match="of the shape"):
        edit.to_peft(tmp_path / "other", hugging_face("llama"))
    with pytest.raises(rl.errors.EditError, match="no updates"):
        rl.Edit((), (REQUEST,)).to_peft(tmp_path / "other", hf_model)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama-gqa"])
def test_an_adapter_is_read_back_as_the_edit(tiny_model, hugging_face, tmp_path, family):
    edit = made_up(tiny_model(family), layers=(0, 1)) + made_up(tiny_model(family), layers=(1,), seed=1)
    edit.to_peft(tmp_path / "adapter", hugging_face(family))
    for read in (rl.Edit.load, rl.Edit.from_peft):
        found = read(tmp_path / "adapter")
        for mine, wanted in zip(found.updates, edit.updates, strict=True):
            assert (mine.layer, mine.matrix) == (wanted.layer, wanted.matrix)
            torch.testing.assert_close(mine.left @ mine.right, wanted.left @ wanted.right)


def test_alpha_scales_what_is_read(tiny_model, hugging_face, tmp_path):
    edit = made_up(tiny_model("gpt2"), layers=(1,))
    edit.to_peft(tmp_path, hugging_face("gpt2"))
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    rank = config["r"]
    path.write_text(json.dumps(config | {"lora_alpha": 3 * rank, "alpha_pattern": {}}))
    (one,) = rl.Edit.from_peft(tmp_path).updates
    torch.testing.assert_close(one.left @ one.right, 3 * edit.updates[0].left @ edit.updates[0].right)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "is no plain LoRA adapter"),
        ({"use_dora": True}, "is no plain LoRA adapter"),
        ({"r": 0, "rank_pattern": {}}, "is damaged or is not an adapter"),
        ({"alpha_pattern": {"c_proj": "x"}}, "is damaged or is not an adapter"),
    ],
)
def test_what_is_no_adapter_of_mlps_is_refused(tiny_model, hugging_face, tmp_path, change, said):
    made_up(tiny_model("gpt2"), layers=(1,)).to_peft(tmp_path, hugging_face("gpt2"))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(rl.errors.FormatError, match=said):
        rl.Edit.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*adapter_config.json"):
        rl.Edit.load(tmp_path.parent)


def test_a_module_that_is_no_mlps_is_named(tmp_path, tiny_model, hugging_face):
    made_up(tiny_model("gpt2"), layers=(1,)).to_peft(tmp_path, hugging_face("gpt2"))
    path = tmp_path / "adapter_model.safetensors"
    save_file({name.replace("mlp", "attn"): value for name, value in load_file(path).items()}, path)
    with pytest.raises(rl.errors.FormatError, match=r"'transformer.h.1.attn.c_proj' is no matrix of an MLP"):
        rl.Edit.from_peft(tmp_path)
