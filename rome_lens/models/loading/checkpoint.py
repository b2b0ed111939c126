"""Hugging Face models from folders: all their weights, from safetensors files inside the folder, and no code.

Weights are read and cast one by one, so that no file stays mapped and memory never holds more than the weights.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rome_lens.errors import FormatError
from rome_lens.models.loading.folder import NOT_A_MODEL, check_folder, count_numbers
from rome_lens.storage import existing_file, foreign

Dtype: TypeAlias = torch.dtype | Literal["auto"]

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_READ = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
REPORTING = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Makes transformers report the weights that do not fit, for `check_weights`, instead of making up others."""
_LEAST_ALLOCATED = 1 << 24  # numbers that any model may have, however small its file
_TOWERS = ("vision", "audio", "vq")  # parts of a configuration
_PART = 1 << 26  # bytes to read before the file is mapped anew


def read_folder(folder: Path, dtype: Dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Reads a causal language model and its tokenizer.

    Raises:
        FormatError: the folder does not hold a complete model that can be read without running its code.
    """
    weights = checked_folder(folder)
    with foreign(folder, *NOT_A_MODEL):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = _built(config, weights, dtype, str(folder))
        return model, read_tokenizer(folder)


def read_tokenizer(folder: Path, **options: str) -> PreTrainedTokenizerBase:
    """A tokenizer that works, and can be copied, which some damaged ones cannot. Raises whatever its libraries do."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # transformers makes an empty one of no files
        raise ValueError("its tokenizer has no vocabulary: tokenizer.json is missing")
    return copy.deepcopy(tokenizer)


def check_weights(model: PreTrainedModel, info: Mapping[str, Any], source: str) -> None:
    """Raises FormatError unless all of a model's weights were found, in their shapes, and there are no others."""
    faults = {
        "missing": sorted(info["missing_keys"]),
        "not of this model": sorted(info["unexpected_keys"]),
        "of another shape": sorted(str(key if isinstance(key, str) else key[0]) for key in info["mismatched_keys"]),
        "not readable": [str(message) for message in info.get("error_msgs", ())],
    }
    found = [f"{len(names)} {fault} ({_listed(names)})" for fault, names in faults.items() if names]
    if found:
        raise FormatError(
            f"{source} does not hold the weights of a {type(model).__name__}: {', '.join(found)}. Fetch it again, or "
            "save the whole model there with save_pretrained."
        )
    check_finite(model, source)


def check_finite(model: PreTrainedModel, source: str) -> None:
    """Raises FormatError if any weight is NaN or infinite."""
    odd = [name for name, parameter in model.named_parameters() if not _is_finite(parameter)]
    if odd:
        raise FormatError(
            f"{source} has weights that are NaN or infinite in {next(model.parameters()).dtype}: {_listed(odd)}. "
            "Fetch it again, or choose a dtype with a larger range."
        )


def refuse_quantized(config: PretrainedConfig | Mapping[str, Any], source: str) -> None:
    """Raises FormatError if a configuration says that its weights are packed."""
    fields = config if isinstance(config, Mapping) else config.to_dict()
    for part in (fields, *(value for value in fields.values() if isinstance(value, Mapping))):
        packed = part.get("quantization_config") or part.get("compression_config")
        if packed:
            method = packed.get("quant_method", "unknown") if isinstance(packed, Mapping) else packed
            raise quantized(source, method)


def quantized(source: str, method: str) -> FormatError:
    """The error for weights that are packed, in one way or another."""
    return FormatError(
        f"{source} is quantized ({method}), and its packed weights cannot be edited. Load the original "
        "weights, or save what model.dequantize() gives with save_pretrained and load that."
    )


def checked_folder(folder: Path) -> list[Path]:
    """The files of weights in a folder. Raises FormatError unless the folder may be read."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            _refuse_adapter(folder)
        raise FormatError(f"{folder} has no config.json, expected a folder in Hugging Face's format (save_pretrained).")
    _check_inside(folder)
    if (folder / "adapter_config.json").is_file() or (folder / "adapter_model.safetensors").is_file():
        _refuse_adapter(folder)
    check_folder(folder)
    config = _json(folder / "config.json")
    refuse_quantized(config, str(folder))
    _refuse_code(folder, config)
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        raise FormatError(
            f"{folder} has a config.json but no weights, expected {_WEIGHTS}. Save the model there with "
            "save_pretrained (pickled .bin files are not read)."
        )
    names = _json(folder / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise FormatError(f"{folder / _INDEX} has no weight_map, expected names of weights and of files. Save it anew.")
    outside = [name for name in names.values() if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise FormatError(f"{folder / _INDEX} names {outside[0]!r}, expected files of the same folder. Save it anew.")
    missing = sorted({name for name in names.values() if not (folder / name).is_file()})
    if missing:
        problem, advice = NOT_A_MODEL
        raise FormatError(f"{folder} {problem}: {_listed(missing)} of its weights is missing. {advice}")
    return [folder / name for name in sorted(set(names.values()))]


def _check_inside(folder: Path) -> None:
    """Raises FormatError if a file is a link out of the folder (in the hub's cache: out of the model's folder)."""
    with foreign(folder, *NOT_A_MODEL):  # links in a circle
        home = folder.resolve()
        snapshots = home.parent
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            home = snapshots.parent
        for file in (file for pattern in _READ for file in folder.glob(pattern)):
            if not file.resolve().is_relative_to(home):
                raise FormatError(
                    f"{file} is a link to {file.resolve()}, outside of its folder, and is not read. Copy the file "
                    "there if it belongs to the model."
                )


def _refuse_adapter(folder: Path) -> None:
    raise FormatError(
        f"{folder} holds an adapter (PEFT), whose weights are not in the model's own matrices. Merge it and load the "
        "result: PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(...)."
    )


def _refuse_code(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises FormatError if a model needs the Python code that comes with it."""
    from transformers import CONFIG_MAPPING

    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING:
        raise FormatError(
            f"{folder} comes with Python code of its own (auto_map in config.json), and code that came with a model is "
            "not run. If you trust it, load it yourself (AutoModelForCausalLM.from_pretrained(..., "
            "trust_remote_code=True)) and pass the model: load_model(hf_model, tokenizer=...)."
        )


def _json(file: Path) -> dict[str, Any]:
    with foreign(file.parent, *NOT_A_MODEL):
        content = json.loads(existing_file(file, "a file of a model").read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{file.name} is not an object")
    return content


def _tensors(files: list[Path], dtype: Dtype) -> dict[str, Tensor]:
    """The tensors of safetensors files, cast and in memory of their own."""
    return {name: tensor for file in files for name, tensor in _file_tensors(file, dtype)}


def _file_tensors(file: Path, dtype: Dtype) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
    while names:
        read = 0
        with safe_open(file, framework="pt") as opened:  # what is mapped counts as memory until the file is closed
            while names and read < _PART:
                name = names.pop()
                tensor = opened.get_tensor(name)
                read += tensor.nbytes
                cast = dtype if isinstance(dtype, torch.dtype) and tensor.is_floating_point() else tensor.dtype
                yield name, tensor.to(cast, copy=True)


def is_composite(config: PretrainedConfig) -> bool:
    """Whether the model has more parts than its language model, such as one for images."""
    return config.get_text_config() is not config or any(name.startswith(_TOWERS) for name in config.sub_configs)


def auto_class(config: PretrainedConfig) -> Any:
    """The Auto class that makes a model with all weights of its checkpoint, towers included."""
    if is_composite(config):
        for name in ("AutoModelForMultimodalLM", "AutoModelForImageTextToText"):
            auto = getattr(transformers, name, None)
            if auto is not None and type(config) in auto._model_mapping:
                return auto
    return AutoModelForCausalLM


def check_allocation(made: nn.Module, numbers: int, source: str) -> None:
    """Raises FormatError if a model on the device meta is far larger than the `numbers` that its file holds.

    What no tensor bounds, such as the length of the context, may size tensors that are made, not read.
    """
    tensors = [*made.parameters(), *made.buffers()]
    if (size := sum(tensor.numel() for tensor in tensors)) > max(_LEAST_ALLOCATED, 2 * numbers):
        largest = max(tensors, key=Tensor.numel)
        raise FormatError(
            f"{source} describes a {type(made).__name__} of {size} numbers, one tensor of them {list(largest.shape)}, "
            f"but holds weights of {numbers}. Fetch it again, or correct the sizes in its configuration."
        )


def _built(config: PretrainedConfig, weights: list[Path], dtype: Dtype, source: str) -> PreTrainedModel:
    with torch.device("meta"):
        made = auto_class(config).from_config(config, trust_remote_code=False)
    check_allocation(made, count_numbers(weights), source)
    keeps_float32 = getattr(made, "_keep_in_fp32_modules", None) or getattr(made, "_keep_in_fp32_modules_strict", None)
    tensors = _tensors(weights, "auto" if keeps_float32 else dtype)
    model, info = type(made).from_pretrained(None, config=made.config, state_dict=tensors, dtype=dtype, **REPORTING)
    check_weights(model, info, source)
    model.config.name_or_path = source
    return model


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(bound.isfinite()) for bound in tensor.detach().aminmax())


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
