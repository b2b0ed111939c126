"""Hugging Face models that are in memory already, in whatever they are wrapped."""

import copy

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from transformers import PreTrainedModel

from rome_lens.errors import FormatError
from rome_lens.models.kinds import Model
from rome_lens.models.loading.checkpoint import Dtype, check_finite, refuse_quantized

_WRAPPERS = {OptimizedModule: "_orig_mod", nn.DataParallel: "module", nn.parallel.DistributedDataParallel: "module"}


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model in a wrapper of torch's, or itself.

    Raises:
        TypeError: it is no Hugging Face model.
        FormatError: its weights are not all there as plain matrices: adapters, quantized, offloaded.
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
        raise TypeError(
            f"The model is a {kind}, expected one of Hugging Face's classes (PreTrainedModel). Pass the one inside of "
            "it, or save it with save_pretrained and load the folder."
        )
    refuse_quantized(model.config, f"The {kind}")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type == "meta":
        raise FormatError(
            f"The {kind}'s weights are on {', '.join(sorted(map(str, devices)))} (offloaded, or on several devices), "
            "expected one device. Load it without device_map."
        )
    return model


def own_copy(model: PreTrainedModel, dtype: Dtype) -> PreTrainedModel:
    """A copy whose parameters are of the dtype; buffers, such as a rotation's frequencies, stay as they are."""
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        if isinstance(dtype, torch.dtype) and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    check_finite(made, f"The {type(model).__name__}")
    return made
