"""Checks against a model's sizes, its embeddings, and whether its tensors require gradients."""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rome_lens.models.kinds import Model, is_bridge


def check_model(model: Model) -> None:
    """Raises TypeError or ValueError unless the model is a decoder of one of TransformerLens' classes."""
    if not isinstance(model, Model):
        raise TypeError(
            f"The model is a {type(model).__name__}, expected a HookedTransformer or a TransformerBridge, such as "
            "load_model gives."
        )
    if is_bridge(model) and model.original_model.config.is_encoder_decoder:
        raise ValueError(
            f"{model.cfg.model_name} has an encoder and a decoder, where facts are not recalled at a subject's last "
            "token before the answer. Use a decoder."
        )


def check_layer(model: Model, layer: int) -> None:
    """Raises TypeError or ValueError unless the model has a block of this number; and as `check_model`."""
    check_model(model)
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"layer is {layer!r}, expected an int from 0 to {model.cfg.n_layers - 1}.")
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"layer is {layer}, but {model.cfg.model_name} has layers 0 to {model.cfg.n_layers - 1}.")


def check_top_k(model: Model, top_k: int) -> None:
    """Raises ValueError unless `top_k` is between 1 and the size of the vocabulary."""
    if isinstance(top_k, bool) or not 1 <= top_k <= model.cfg.d_vocab:
        raise ValueError(f"top_k is {top_k}, expected a whole number from 1 to {model.cfg.d_vocab}.")


def embeddings(model: Model) -> Float[Tensor, "d_vocab d_model"]:
    """The token embedding matrix."""
    return model.embed.W_E.detach()


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer by itself puts before a text and after it: often BOS before, sometimes more (GLM)."""
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    place = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return whole[:place], whole[place + len(bare) :]


def prefix_ids(model: Model) -> list[int]:
    """The ids that `model.to_tokens` puts before a text: the tokenizer's own; BOS by `cfg.default_prepend_bos`."""
    before, _ = added_tokens(model.tokenizer)
    if model.cfg.default_prepend_bos:
        return before if model.cfg.tokenizer_prepends_bos else [*before, model.tokenizer.bos_token_id]
    return before[1:] if model.cfg.tokenizer_prepends_bos else before


def random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """Inside, numbers may be drawn on the CPU and on this device; afterwards torch's generators are where they were."""
    devices = [] if device.type == "cpu" else [device]
    return torch.random.fork_rng(devices=devices, device_type=device.type)


def in_float64(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The values in float64, on their own device, or on the CPU where that one has no float64 (Apple's GPUs)."""
    try:
        return values.double()
    except TypeError:
        return values.cpu().double()


class requiring_grad(AbstractContextManager[None]):
    """Inside, all tensors have this `requires_grad`; afterwards each has its own again.

    No generator, which would put back late what an interruption left: after the call around it has put back all.
    """

    def __init__(self, tensors: Iterable[Tensor], required: bool):
        self._before = [(tensor, tensor.requires_grad) for tensor in tensors]
        self._required = required

    def __enter__(self) -> None:
        for tensor, _ in self._before:
            tensor.requires_grad_(self._required)

    def __exit__(self, *error: object) -> None:
        for tensor, own in self._before:
            tensor.requires_grad_(own)


def check_normal(weights: Iterable[Tensor]) -> None:
    """Raises ValueError if some of a model's weights are not in memory, or are inference tensors."""
    weights = list(weights)
    if any(weight.is_meta for weight in weights):
        raise ValueError(
            "The model's weights are not in memory (on the device meta: it was offloaded by accelerate, or made "
            "without weights), and can neither be read nor edited. Load it whole, without device_map or offloading."
        )
    if any(weight.is_inference() for weight in weights):
        raise ValueError(
            "The model's weights are inference tensors (it was loaded under torch.inference_mode()), which can neither "
            "be edited nor give gradients. Load it outside of that, or take a copy: copy.deepcopy(model)."
        )


def frozen(model: Model) -> AbstractContextManager[None]:
    """Inside, no parameter requires a gradient; afterwards each has its own `requires_grad` again."""
    check_normal(model.parameters())
    return requiring_grad(model.parameters(), False)


def count_in_blocks(model: Model) -> int:
    """How many numbers the weights of all blocks hold: what a pass multiplies each token with."""
    return sum(parameter.numel() for parameter in model.blocks.parameters())
