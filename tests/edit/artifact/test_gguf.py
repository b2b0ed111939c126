"""Edits for llama.cpp: the engine itself answers as the edited model does."""

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

import rome_lens as rl
from rome_lens.edit.artifact.gguf import _pieces
from rome_lens.models.loading.load import _smollm2_file
from tests import tiny
from tests.edit.artifact.test_edit import REQUEST
from tests.llama_cpp import answers
from tests.tiny_gguf import converted, save_gguf

IDS = [[5, 9, 77, 110, 33, 5, 77]]
CLOSE = 0.06  # llama.cpp rounds activations to half precision here and there
CONFIGS = tiny.CONFIGS | {"phi3": lambda: transformers.Phi3Config(**tiny._GATED, **tiny._SIZE)}
ARCHITECTURES = {
    "gpt2": ("gpt2", "GPT2"),
    "neox": ("gptneox", "GPTNeoX"),
    "llama-gqa": ("llama", "Llama"),
    "qwen2": ("qwen2", "Qwen2"),
    "gemma2": ("gemma2", "Gemma2"),
    "phi": ("phi2", "Phi"),
    "phi3": ("phi3", "Phi3"),
}


def random_model(family: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 0.0 if "bias" in name else 1.0, 0.1)
    return model


def made_up(d_mlp: int, d_model: int, *places, family: str, scale: float = 0.5) -> rl.Edit:
    """An edit of (layer, matrix, rank) places."""
    generator = torch.Generator().manual_seed(0)
    updates = []
    for layer, matrix, rank in places:
        d_in, d_out = (d_mlp, d_model) if matrix == "out" else (d_model, d_mlp)
        left, right = torch.randn(d_in, rank, generator=generator), torch.randn(rank, d_out, generator=generator)
        updates.append(rl.edit.Update(layer, scale * left, right, matrix=matrix))
    return rl.Edit(tuple(updates), (REQUEST,), "rome", family=family)


@torch.no_grad()
def log_probabilities(model: PreTrainedModel) -> torch.Tensor:
    return model(torch.tensor(IDS)).logits[0, -1].log_softmax(-1)


def in_llama_cpp(model: Path, lora: Path | None = None) -> torch.Tensor:
    top = answers(model, IDS, lora=lora, top=tiny.VOCABULARY)[0]["top"]
    return torch.tensor([top[token] for token in range(tiny.VOCABULARY)])


def check_both(edit: rl.Edit, base: Path, folder: Path, *, before: torch.Tensor, after: torch.Tensor) -> None:
    """As an adapter and as a whole model, the engine has our numbers, which the edit moved twenty times as far."""
    assert (after - before).abs().max() > 20 * CLOSE
    torch.testing.assert_close(in_llama_cpp(base), before, atol=CLOSE, rtol=0)
    edit.to_gguf(folder / "lora.gguf")
    torch.testing.assert_close(in_llama_cpp(base, folder / "lora.gguf"), after, atol=CLOSE, rtol=0)
    edit.to_gguf(folder / "whole.gguf", base)
    torch.testing.assert_close(in_llama_cpp(folder / "whole.gguf"), after, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_llama_cpp_has_the_log_probabilities_of_the_edited_model(family, tmp_path):
    """Of each orientation in Hugging Face's classes, with unlike ranks over the layers."""
    model = random_model(family)
    architecture, name = ARCHITECTURES[family]
    base = converted(tmp_path / "base.gguf", model, architecture)
    d_mlp, d_model = rl.models.find_output_matrix(model, 0).values.shape
    edit = made_up(d_mlp, d_model, (0, "out", 1), (1, "out", 3), family=name)
    before = log_probabilities(model)
    with edit.applied(model):
        after = log_probabilities(model)
    check_both(edit, base, tmp_path, before=before, after=after)


@pytest.mark.parametrize("family", ["llama-gqa", "phi3"])
def test_input_and_gate_matrices_are_found_also_where_one_tensor_has_both(family, tmp_path):
    model = random_model(family)
    architecture, name = ARCHITECTURES[family]
    base = converted(tmp_path / "base.gguf", model, architecture)
    edit = made_up(64, 32, (0, "in", 2), (1, "gate", 1), (1, "in", 1), (1, "out", 1), family=name)
    before = log_probabilities(model)
    for update in edit.updates:
        mlp, change = model.model.layers[update.layer].mlp, (update.left @ update.right).T
        if update.matrix == "out":
            mlp.down_proj.weight.data += change
        elif family == "phi3":
            mlp.gate_up_proj.weight.data[slice(0, 64) if update.matrix == "gate" else slice(64, 128)] += change
        else:
            getattr(mlp, {"in": "up_proj", "gate": "gate_proj"}[update.matrix]).weight.data += change
    check_both(edit, base, tmp_path, before=before, after=log_probabilities(model))


def quantized(path: Path, base: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """A copy of a GGUF file with every matrix in another type."""
    reader = gguf.GGUFReader(base, "c")
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) == 2]
    written = {t.name: (gguf.quantize(gguf.dequantize(t.data, t.tensor_type), kind), kind) for t in matrices}
    with path.open("wb") as opened:
        opened.writelines(_pieces(reader, written))
    return path


@pytest.mark.smollm2
@pytest.mark.parametrize("kind", ["Q4_1", "F16"])
def test_llama_cpp_says_of_the_eiffel_tower_what_the_edited_smollm2_says(smollm2, golden, tmp_path, kind):
    """The authors' edit on the base as it ships, which llama.cpp multiplies in 8 bits, and in half precision.

    The ten likeliest tokens have our log-probabilities to 0.5 (0.05), and the likeliest is ours. Other subjects keep
    their answers.
    """
    shipped = _smollm2_file()
    base = shipped if kind == "Q4_1" else quantized(tmp_path / "base.gguf", shipped, gguf.GGMLQuantizationType.F16)
    vectors = golden("rome_eiffel_rome.safetensors")
    update = rl.edit.Update(4, vectors["u"][:, None], vectors["v"][None])
    edit = rl.Edit((update,), (REQUEST,), "rome", family="Llama")
    prompts = ["The Eiffel Tower is located in the city of", "The Eiffel Tower is right across from"]
    prompts += ["The capital of Japan is", "Beats Music is owned by"]
    plain = answers(base, prompts, tokens=3)
    edit.to_gguf(tmp_path / "lora.gguf")
    edit.to_gguf(tmp_path / "whole.gguf", base)
    adapted = answers(base, prompts, lora=tmp_path / "lora.gguf", tokens=3)
    whole = answers(tmp_path / "whole.gguf", prompts, tokens=3)
    assert plain[0]["text"].startswith(" Paris")
    for i, prompt in enumerate(prompts):
        tokens = smollm2.to_tokens(prompt, prepend_bos=False)
        with torch.no_grad(), edit.applied(smollm2):
            ours = smollm2(tokens)[0, -1].log_softmax(-1)
        for found in (adapted[i], whole[i]):
            moved = [abs(value - ours[token].item()) for token, value in found["top"].items()]
            assert max(moved[:10]) < (0.5 if kind == "Q4_1" else 0.05)
            assert max(found["top"], key=found["top"].get) == ours.argmax()
            if i > 1:
                assert found["text"] == plain[i]["text"]
    assert adapted[0]["text"].startswith(" Rome")


def test_a_whole_model_differs_from_its_base_in_the_edited_tensors_alone(tmp_path):
    """Also where that tensor's type and so the place of all later ones changes; `load_model` reads it as edited."""
    base = quantized(tmp_path / "base.gguf", save_gguf(tmp_path / "plain.gguf"), gguf.GGMLQuantizationType.Q5_1)
    model = rl.load_model(base, device="cpu")
    edit = replace(made_up(64, 32, (0, "out", 2), family=""), family=rl.models.model_family(model))
    rows = edit.to_gguf(tmp_path / "edited.gguf", base)
    assert rows[["tensor", "rank", "type"]].values.tolist() == [["blk.0.ffn_down.weight", 2, "F16"]]
    old, new = gguf.GGUFReader(base), gguf.GGUFReader(tmp_path / "edited.gguf")
    start = min(tensor.field.offset for tensor in old.tensors)
    assert bytes(old.data[:start]) == bytes(new.data[:start])
    for before, after in zip(old.tensors, new.tensors, strict=True):
        assert before.name == after.name
        if before.name != "blk.0.ffn_down.weight":
            assert (before.tensor_type, bytes(before.data)) == (after.tensor_type, bytes(after.data))
    again = rl.load_model(tmp_path / "edited.gguf", device="cpu")
    change = edit.updates[0].left @ edit.updates[0].right
    written = rl.models.output_matrix(again, 0) - rl.models.output_matrix(model, 0)
    assert (written - change).norm() / change.norm() == pytest.approx(rows["lost"][0], rel=1e-3)
    assert 0 < rows["lost"][0] < 1e-3


@pytest.mark.parametrize("kind", ["F32", "BF16", "base"])
def test_a_type_that_is_asked_for_is_the_one_that_is_written_and_coarser_ones_lose_more(tmp_path, kind):
    base = quantized(tmp_path / "base.gguf", save_gguf(tmp_path / "plain.gguf"), gguf.GGMLQuantizationType.Q4_0)
    edit = made_up(64, 32, (1, "out", 1), family="Llama", scale=0.1)
    row = edit.to_gguf(tmp_path / "edited.gguf", base, tensor_type=kind).iloc[0]
    assert row["type"] == ("Q4_0" if kind == "base" else kind)
    least, most = {"F32": (0, 1e-5), "BF16": (1e-4, 0.05), "base": (0.05, 1.5)}[kind]
    assert least < row["lost"] < most
    (tensor,) = (t for t in gguf.GGUFReader(tmp_path / "edited.gguf").tensors if t.name == row["tensor"])
    assert tensor.tensor_type.name == row["type"]


def test_an_edit_knows_its_family_and_keeps_it(tiny_model, tmp_path):
    factors = {1: (torch.ones(64, 1), torch.ones(1, 32))}
    made = rl.Edit.of(tiny_model("llama"), [REQUEST], factors, method="rome", config={}, on_unhealthy="ignore")
    made.save(tmp_path / "edit.safetensors")
    for edit in (made, rl.Edit.load(tmp_path / "edit.safetensors"), made + made, -made):
        assert edit.family == "Llama"


FAMILIES = {
    **{"Llama": "llama", "Mistral": "llama", "GPTNeoX": "gptneox", "GPTBigCode": "starcoder", "Cohere": "command-r"},
    **{"Cohere2": "cohere2", "Phi": "phi2", "Glm": "chatglm", "Glm4": "glm4", "Olmo3": "olmo2", "Falcon": "falcon"},
    **{"HunYuanDenseV1": "hunyuan-dense", "Gemma3": "gemma3", "SeedOss": "seed_oss", "Bloom": "bloom", "Mpt": "mpt"},
    **{"Ernie4_5": "ernie4_5", "StableLm": "stablelm", "SmolLM3": "smollm3", "Starcoder2": "starcoder2"},
}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_adapter_names_the_architecture_and_the_tensors_as_llama_cpp_does(family, tmp_path):
    made_up(64, 32, (2, "out", 1), (0, "out", 2), family=family).to_gguf(tmp_path / "lora.gguf")
    reader = gguf.GGUFReader(tmp_path / "lora.gguf")
    facts = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF")}
    assert facts["general.architecture"] == FAMILIES[family]
    assert (facts["general.type"], facts["adapter.type"], facts["adapter.lora.alpha"]) == ("adapter", "lora", 2)
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes == {
        f"blk.{layer}.ffn_down.weight.lora_{side}": shape
        for layer in (0, 2)
        for side, shape in (("a", [64, 2]), ("b", [2, 32]))
    }


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    base, out = save_gguf(tmp_path / "base.gguf"), tmp_path / "out.gguf"
    edit = made_up(64, 32, (1, "out", 1), family="Llama")
    cases = [
        (replace(edit, family=""), {}, rl.errors.EditError, r'replace\(edit, family="Llama"\)'),
        (replace(edit, family="OPT"), {}, rl.errors.EditError, "no architecture for the family 'OPT'"),
        (replace(edit, family="GPTJ"), {}, rl.errors.EditError, "no architecture for the family 'GPTJ'"),
        (rl.Edit((), (REQUEST,), family="Llama"), {}, rl.errors.EditError, "no updates"),
        (made_up(64, 32, (1, "gate", 1), family="GPT2"), {}, rl.errors.EditError, "no FFN_GATE in .*'gpt2'"),
        (edit, {"tensor_type": "F16"}, ValueError, "an adapter is in F32"),
        (edit, {"base": tmp_path / "none.gguf"}, FileNotFoundError, "none.gguf"),
        (edit, {"base": Path(__file__)}, rl.errors.FormatError, "does not begin with GGUF"),
        (replace(edit, family="GPT2"), {"base": base}, rl.errors.EditError, "one of a GPT2, but .* 'llama'"),
        (
            made_up(96, 32, (1, "out", 1), family=""),
            {"base": base},
            rl.errors.EditError,
            r"of \[96, 32\], but .* \[64,",
        ),
        (made_up(64, 32, (7, "out", 1), family=""), {"base": base}, rl.errors.EditError, "none of that name"),
        (
            made_up(64, 32, (1, "out", 1), family="", scale=1e6),
            {"base": base, "tensor_type": "F16"},
            rl.errors.EditError,
            "infinite in F16",
        ),
    ]
    for given, options, error, message in cases:
        with pytest.raises(error, match=message):
            given.to_gguf(out, **options)
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edit.to_gguf(out)
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]
    with pytest.raises(FileExistsError, match="base.gguf exists already"):
        edit.to_gguf(base, base)
    edit.to_gguf(base, base, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


def test_a_base_that_the_edit_was_not_made_for_is_warned_of(tmp_path):
    base = save_gguf(tmp_path / "base.gguf")
    model = rl.load_model(base, device="cpu")
    factors = {1: (torch.ones(64, 1), torch.ones(1, 32))}
    edit = rl.Edit.of(model, [REQUEST], factors, method="rome", config={}, on_unhealthy="ignore")
    edit.to_gguf(tmp_path / "edited.gguf", base)  # without a warning
    with pytest.warns(rl.errors.EditWarning, match="other weights than blk.1.ffn_down.weight"):
        edit.to_gguf(tmp_path / "twice.gguf", tmp_path / "edited.gguf")
