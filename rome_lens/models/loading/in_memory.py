"""Hugging Face models that are already in memory, wrapped or not."""

import copy

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from transformers import PreTrainedModel

from rome_lens.errors import FormatError
from rome_lens.models.kinds import Model
from rome_lens.models.loading.checkpoint import Dtype, check_finite, quantized, refuse_quantized
from rome_lens.models.mlp.huggingface import is_packed

_WRAPPERS = {OptimizedModule: "_orig_mod", nn.DataParallel: "module", nn.parallel.DistributedDataParallel: "module"}


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model itself, out of torch's wrappers.

    Raises:
        TypeError: it is not a Hugging Face model.
        FormatError: its weights are not plain matrices on one device: they are adapted, quantized or offloaded.
    """
    while (inside := _WRAPPERS.get(type(model))) is not None:
        model = getattr(model, inside)
    kind = type(model).__name__
    if any(type(module).__module__.partition(".")[0] == "peft" for module in model.modules()):
        raise FormatError(
            f"The model is a {kind} with adapters (PEFT), whose weights are not in the model's own matrices. Pass "
            "what model.merge_and_unload() gives."
        )
    if isinstance(model, Model):
        raise TypeError(f"The model is a {kind} already, expected one of Hugging Face's classes. Use it as it is.")
    if not isinstance(model, PreTrainedModel):
        found = [path for path, module in model.named_modules() if isinstance(module, PreTrainedModel)]
        way = f"Pass what it wraps: model.{found[0]}" if found else "Pass the one inside of it"
        raise TypeError(
            f"The model is a {kind}, expected one of Hugging Face's classes (PreTrainedModel). {way}, or save it with "
            "save_pretrained and load the folder."
        )
    if not _is_dequantized(model):
        refuse_quantized(model.config, f"The {kind}")
    if packed := next((type(module).__name__ for module in model.modules() if is_packed(module)), None):
        raise quantized(f"The {kind}", packed)
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type == "meta":
        raise FormatError(
            f"The {kind}'s weights are on {', '.join(sorted(map(str, devices)))} (offloaded, or on several devices), "
            "expected one device. Load it without device_map."
        )
    return model


def _is_dequantized(model: PreTrainedModel) -> bool:
    """Whether a model was read from a GGUF file, as plain floats that its configuration still calls quantized."""
    return "gguf" in str(getattr(model.config, "quantization_config", "")).lower()


def own_copy(model: PreTrainedModel, dtype: Dtype) -> PreTrainedModel:
    """A copy with its parameters in the dtype; buffers, such as a rotation's frequencies, keep theirs."""
    made = cast_parameters(copy.deepcopy(model), dtype)
    if _is_dequantized(made):
        del made.config.quantization_config
    check_finite(made, f"The {type(model).__name__}")
    return made


def cast_parameters(model: PreTrainedModel, dtype: Dtype) -> PreTrainedModel:
    """The same model with parameters of the dtype; buffers, such as a rotation's frequencies, stay as they are."""
    for parameter in model.parameters():
        if isinstance(dtype, torch.dtype) and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model
