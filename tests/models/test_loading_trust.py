"""A model that loads is the function that was trained; all its weights were there; and nothing was run to read it."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import rome_lens as rl
from rome_lens.errors import FormatError
from rome_lens.models.kinds import HAS_HOOKED
from rome_lens.models.loading import converting
from rome_lens.models.loading.comparing import Difference
from rome_lens.models.tokens import tokenize_continuation
from tests.tiny import CONFIGS, save_model, save_tokenizer

PROMPT = "The Eiffel Tower is located in the city of"
MARKER = "import pathlib, os; pathlib.Path(os.environ['MARKER']).write_text('ran')\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama that a test may change."""
    return save_model(tmp_path / "tiny", "llama")


@pytest.fixture
def in_memory(tiny_folder: Callable[..., Path]) -> Callable[..., tuple]:
    """Gives a Hugging Face model and its tokenizer."""

    def read(family: str = "llama", **options) -> tuple:
        place = tiny_folder(family)
        return AutoModelForCausalLM.from_pretrained(place, **options), AutoTokenizer.from_pretrained(place)

    return read


def load(source, **options):
    return rl.load_model(source, **{"device": "cpu", **options})


def change_json(file: Path, **fields) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def save_changed(folder: Path, config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """Saves a model whose biases are not zero, as they are in a new one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 1.0, 0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


@torch.no_grad()
def assert_same_function(model, hf_model, length: int = 100) -> None:
    ids = torch.randint(1, 384, (2, length), generator=torch.Generator().manual_seed(1))
    expected = hf_model(ids).logits.log_softmax(-1)
    torch.testing.assert_close(model(ids).log_softmax(-1), expected, atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------------------------------ same function


ODD = {
    "a scaled rotation": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "a rotation that grows": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}),
    "biases in attention": ("llama", {"attention_bias": True}),
    "biases in MLPs": ("llama", {"mlp_bias": True}),
    "heads of another size": ("llama", {"head_dim": 16}),
    "a short window": ("qwen2", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}),
    "a narrow MLP": ("gpt2", {"n_inner": 48}),
    "another activation": ("gpt2", {"activation_function": "relu"}),
}


@pytest.mark.parametrize("odd", ODD)
def test_a_configuration_that_transformer_lens_loses_loads_as_the_function_it_was(tmp_path, odd):
    family, fields = ODD[odd]
    config = CONFIGS[family]()
    for name, value in fields.items():
        setattr(config, name, value)
    if "max_window_layers" in fields:
        config.layer_types = ["full_attention", "sliding_attention", "sliding_attention"]
    hf_model = save_changed(tmp_path, config)
    assert_same_function(load(tmp_path), hf_model)


def test_a_configuration_that_transformer_lens_cannot_convert_is_refused_with_its_unusual_fields(tmp_path):
    config = CONFIGS["opt"]()
    config.do_layer_norm_before = False
    save_changed(tmp_path, config)
    with pytest.raises(FormatError, match="does not convert.*do_layer_norm_before=False"):
        load(tmp_path)


def test_a_model_says_of_which_class_it_is_and_why(tmp_path, tiny_model, caplog):
    if HAS_HOOKED:
        assert tiny_model("gpt2").loaded_as.startswith("HookedTransformer: its log-probabilities differ")
    config = CONFIGS["llama"]()
    config.mlp_bias = True
    save_changed(tmp_path, config)
    with caplog.at_level(logging.INFO, logger="rome_lens"):
        model = load(tmp_path)
    assert model.loaded_as.startswith("TransformerBridge: ")
    assert model.loaded_as in caplog.text


@torch.no_grad()
@pytest.mark.parametrize(("family", "changes"), [("llama", {"mlp_bias": True}), ("gpt2", {"n_inner": 24})])
def test_a_loaded_bridge_generates_what_it_predicts(tmp_path, family, changes):
    """TransformerLens' own generate reads one token alone where transformers calls the cache by its newer name."""
    config = CONFIGS[family]()
    config.update(changes)
    save_changed(tmp_path, config)
    model = load(tmp_path)
    assert model.loaded_as.startswith("TransformerBridge")
    expected = tokens = torch.tensor([model.tokenizer("The Eiffel Tower is in the").input_ids])
    for _ in range(4):
        expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(
        model.generate(tokens, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False), expected
    )


def test_a_conversion_to_another_function_is_refused_with_the_unusual_fields(folder, monkeypatch):
    monkeypatch.setattr(converting, "difference", lambda *args: Difference(1.0, 2.5, 1e-4))
    change_json(folder / "config.json", rms_norm_eps=1e-3)
    with pytest.raises(FormatError, match=r"converts to another function.*2\.5 nats.*rms_norm_eps=0\.001"):
        load(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_half_precision_is_no_reason_for_a_refusal(tiny_folder, dtype):
    model = load(tiny_folder("llama"), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert "differ" in model.loaded_as or not HAS_HOOKED


def test_auto_is_the_dtype_that_the_weights_are_stored_in(tmp_path, tiny_folder):
    hf_model = AutoModelForCausalLM.from_pretrained(tiny_folder("gpt2"), dtype=torch.bfloat16)
    hf_model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert next(load(tmp_path, dtype="auto").parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["int8", "bf16", "Tensor", torch.int64, torch.complex64])
def test_a_dtype_that_is_none_is_refused(dtype):
    with pytest.raises(ValueError, match="expected one of floating point"):
        load("smollm2-135m", dtype=dtype)


def test_nothing_can_be_computed_on_meta(tiny_folder):
    with pytest.raises(ValueError, match="device is 'meta', expected"):
        rl.load_model(tiny_folder("gpt2"), device="meta")


# A Bridge of GPT-2 has queries, keys and values as parts of one matrix, as Hugging Face's class has.
@pytest.mark.parametrize("family", [pytest.param("gpt2", marks=pytest.mark.hooked), "llama", "neox"])
def test_no_two_parameters_share_memory_and_none_keeps_more_than_it_needs(tiny_model, family):
    storages = [parameter.untyped_storage() for parameter in tiny_model(family).parameters()]
    assert len({storage.data_ptr() for storage in storages}) == len(storages)
    assert sum(storage.nbytes() for storage in storages) == sum(p.nbytes for p in tiny_model(family).parameters())


# ------------------------------------------------------------------------------------------------------ in memory


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
def test_a_model_in_memory_loads_and_is_left_as_it_was(in_memory, family):
    hf_model, tokenizer = in_memory(family)
    hf_model.train()
    config, before = hf_model.config.to_dict(), {name: value.clone() for name, value in hf_model.state_dict().items()}
    classes = [type(module) for module in hf_model.modules()]
    model = load(hf_model, tokenizer=tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert hf_model.training
    assert hf_model.config.to_dict() == config
    assert [type(module) for module in hf_model.modules()] == classes
    assert all(torch.equal(value, before[name]) for name, value in hf_model.state_dict().items())
    assert model.cfg.model_name == family


def test_a_model_in_memory_is_the_function_it_was(in_memory):
    hf_model, tokenizer = in_memory("gpt2")
    assert_same_function(load(hf_model, tokenizer=tokenizer), hf_model.eval())


def test_a_model_in_memory_needs_a_tokenizer_and_others_bring_theirs(in_memory, tiny_folder):
    hf_model, tokenizer = in_memory()
    with pytest.raises(ValueError, match=r"has no tokenizer with it.*tokenizer=\.\.\."):
        load(hf_model)
    with pytest.raises(ValueError, match="brings its own"):
        load(tiny_folder("gpt2"), tokenizer=tokenizer)


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile])
def test_wrappers_of_torch_are_taken_off(in_memory, wrap):
    hf_model, tokenizer = in_memory("gpt2")
    assert_same_function(load(wrap(hf_model), tokenizer=tokenizer), hf_model.eval())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_adapters_in_memory_are_named_with_the_way_in(in_memory):
    peft = pytest.importorskip("peft")
    hf_model, tokenizer = in_memory()
    adapted = peft.get_peft_model(hf_model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(FormatError, match=r"merge_and_unload\(\)"):
        load(adapted, tokenizer=tokenizer)
    assert load(adapted.merge_and_unload(), tokenizer=tokenizer)


def test_what_is_no_hugging_face_model_is_told(tiny, in_memory):
    tokenizer = in_memory()[1]
    with pytest.raises(TypeError, match="already"):
        load(tiny, tokenizer=tokenizer)
    with pytest.raises(TypeError, match="expected one of Hugging Face's classes"):
        load(torch.nn.Linear(2, 2), tokenizer=tokenizer)


def test_offloaded_and_quantized_models_in_memory_are_told(in_memory):
    hf_model, tokenizer = in_memory()
    hf_model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(FormatError, match="is quantized \\(gptq\\)"):
        load(hf_model, tokenizer=tokenizer)
    with pytest.raises(FormatError, match="offloaded"):
        load(in_memory()[0].to("meta"), tokenizer=tokenizer)


# ------------------------------------------------------------------------------------------------------ all weights


def missing(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]


def renamed(tensors):
    tensors["model.layers.1.mlp.uq_proj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")


def left_over(tensors):
    tensors["model.layers.7.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].clone()


def reshaped(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(3, 3)


def not_a_number(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan


def infinite(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = -torch.inf


@pytest.mark.parametrize("damage", [missing, renamed, left_over, reshaped, not_a_number, infinite])
@pytest.mark.parametrize("sharded", [False, True])
def test_weights_that_are_not_those_of_the_model_are_errors_with_their_names(folder, damage, sharded):
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    if sharded:
        (folder / "model.safetensors").unlink()
        halves = list(tensors)[::2], list(tensors)[1::2]
        for i, names in enumerate(halves):
            save_file({name: tensors[name] for name in names}, folder / f"part{i}.safetensors", {"format": "pt"})
        weight_map = {name: f"part{i}.safetensors" for i, names in enumerate(halves) for name in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=r"layers\.[17]\.mlp\.u[pq]_proj"):
        load(folder)


def test_a_weight_too_large_for_the_dtype_is_an_error(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=r"infinite in torch\.float16.*up_proj"):
        load(folder, dtype="float16")


@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_is_refused_with_the_way_to_merge_it(folder, alone):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "gpt2"}))
    if alone:
        (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"merge_and_unload\(\)"):
        load(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_quantized_weights_are_refused_in_a_sentence(folder, method):
    change_json(folder / "config.json", quantization_config={"quant_method": method})
    with pytest.raises(FormatError, match=f"is quantized \\({method}\\)"):
        load(folder)


# ------------------------------------------------------------------------------------------------------ nothing is run


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "sub/part.safetensors", "..", ""])
def test_an_index_that_names_files_elsewhere_is_refused(folder, name):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    names = load_file(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
    with pytest.raises(FormatError, match=r"expected files of the same folder"):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_link_out_of_the_folder_is_refused(folder, name):
    (folder / name).rename(folder.parent / "outside")
    (folder / name).symlink_to(folder.parent / "outside")
    with pytest.raises(FormatError, match="outside of its folder, and is not read"):
        load(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a folder into a cache of the hub as the hub does it, with links to blobs, and gives the snapshot."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(name: str, folder: Path) -> Path:
        home, revision = cache / f"models--{name.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
        snapshot = home / "snapshots" / revision
        for made in (home / "blobs", home / "refs", snapshot):
            made.mkdir(parents=True)
        (home / "refs" / "main").write_text(revision)
        for i, file in enumerate(folder.iterdir()):
            file.rename(home / "blobs" / str(i))
            (snapshot / file.name).symlink_to(home / "blobs" / str(i))
        return snapshot

    return put


def test_any_name_of_the_hub_loads(hub, folder):
    snapshot = hub("someone/tiny-llama", folder)
    hf_model = AutoModelForCausalLM.from_pretrained(snapshot).eval()
    model = load("someone/tiny-llama")
    assert model.cfg.model_name == "tiny-llama"
    assert_same_function(model, hf_model)


def test_a_name_of_the_hub_that_is_not_there_is_told_with_what_to_do(hub):
    with pytest.raises(rl.errors.UnavailableError, match=r"could not be reached or does not give it.*pass the folder"):
        load("someone/nothing")


def test_a_model_that_is_a_pickle_is_refused():
    with pytest.raises(FormatError, match=r"pickled \.pth file"):
        load("solu-1l")


LOADING = """
import sys
import rome_lens as rl
for source in sys.argv[1:]:
    try:
        print("loaded", rl.load_model(source, device="cpu").cfg.model_name)
    except rl.errors.FormatError as error:
        print("refused", " ".join(str(error).split()))
"""


def load_hostile(tmp_path: Path, *sources: str) -> list[str]:
    """What loading them says, in a process without standard input where any code of a model leaves a marker."""
    environment = {**os.environ, "MARKER": str(tmp_path / "marker"), "HF_HUB_OFFLINE": "1"}
    environment["HF_HUB_CACHE"] = str(tmp_path / "hub")
    command = [sys.executable, "-c", LOADING, *sources]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "marker").exists()
    return done.stdout.splitlines()


def make_hostile(folder: Path, model_type: str) -> None:
    """Gives a folder code and pickles that leave a marker wherever one of them is read."""
    auto_map = {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "evil.Model",
        "AutoTokenizer": ["evil.T", "evil.T"],
    }
    change_json(folder / "config.json", model_type=model_type, auto_map=auto_map)
    change_json(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="EvilTokenizer")
    (folder / "evil.py").write_text(MARKER + "C = M = T = None\n")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch $MARKER'\ntR.")


def test_code_and_pickles_are_never_run_and_nothing_is_asked(hub, tmp_path):
    """Neither those of a folder, of a family that transformers knows or not, nor those of the hub."""
    folders, names = [tmp_path / "llama", tmp_path / "evil"], ["someone/evil", "bigcode/santacoder", "Qwen/Qwen-7B"]
    for folder in folders:
        make_hostile(save_model(folder, "llama"), folder.name)
    for name in names:
        made = save_model(tmp_path / "published", "llama")
        make_hostile(made, "evil")
        hub(name, made)
    said = load_hostile(tmp_path, *map(str, folders), *names)
    assert len(said) == 5
    assert "load_model(hf_model, tokenizer=...)" in said[1]
    assert all("code that came with a model is not run" in line for line in said[2:])


# ------------------------------------------------------------------------------------------------------ tokenizer


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_tokenizer_is_hugging_faces_own(tiny_folder, family, bos):
    model = load(tiny_folder(family, bos=bos))
    own = AutoTokenizer.from_pretrained(tiny_folder(family, bos=bos))
    for text in ["", PROMPT, "<|endoftext|>" + PROMPT, " two  spaces ", "東京"]:
        assert model.tokenizer(text)["input_ids"] == own(text)["input_ids"]
        if text:
            assert model.to_tokens(text)[0].tolist() == own(text)["input_ids"]
    assert model.cfg.default_prepend_bos is bos


def test_a_tokenizer_that_was_passed_is_not_changed(in_memory):
    hf_model, tokenizer = in_memory()
    load(hf_model, tokenizer=tokenizer)
    assert tokenizer.pad_token is None


READING = {
    "trace": lambda model, prompt: rl.causal_trace(
        model, rl.Fact(prompt + " {} is", "Paris"), samples=1, progress=False
    ),
    "score": lambda model, prompt: rl.evaluate.score_record(
        model, rl.EditRecord(rl.EditRequest(prompt + " {} is", "Paris", "Rome"), "France")
    ),
    "generate": lambda model, prompt: rl.evaluate.generate_texts(model, [prompt], length=16),
    "target": lambda model, prompt: tokenize_continuation(model, prompt, "Paris"),
}


@pytest.mark.parametrize("name", READING)
def test_a_prompt_that_begins_with_bos_and_gets_another_is_told(tiny_model, name):
    with pytest.warns(rl.errors.DataWarning, match=r"begins with '<\|endoftext\|>', and the model puts one before it"):
        READING[name](tiny_model("llama", bos=True), "<|endoftext|>" + PROMPT)
    READING[name](tiny_model("llama"), "<|endoftext|>" + PROMPT)


def test_a_token_number_that_no_vocabulary_has_is_refused(folder):
    """tokenizers lists every number up to it: gigabytes, and minutes."""
    read = json.loads((folder / "tokenizer.json").read_text())
    read["model"]["vocab"]["far"] = 2**32 - 1
    (folder / "tokenizer.json").write_text(json.dumps(read))
    with pytest.raises(FormatError, match=r"tokenizer.json has the number 4294967295, more than any vocabulary holds"):
        load(folder)
