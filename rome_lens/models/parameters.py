"""A model's sizes, embeddings and gradients, and the memory order that its matrices are kept in."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.checking import checked
from rome_lens.models.kinds import Model, is_bridge


def check_model(model: Model) -> None:
    """Raises TypeError or ValueError unless the model is a decoder in one of TransformerLens' classes."""
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
    """Raises ValueError unless `layer` is the number of one of the model's blocks; and as `check_model`."""
    check_model(model)
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"layer is {layer!r}, expected an int from 0 to {model.cfg.n_layers - 1}.")
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"layer is {layer}, but {model.cfg.model_name} has layers 0 to {model.cfg.n_layers - 1}.")


def check_top_k(model: Model, top_k: int) -> None:
    """Raises ValueError unless so many tokens can be drawn from."""
    if isinstance(top_k, bool) or not 1 <= top_k <= model.cfg.d_vocab:
        raise ValueError(f"top_k is {top_k}, expected a whole number from 1 to {model.cfg.d_vocab}.")


def embeddings(model: Model) -> Float[Tensor, "d_vocab d_model"]:
    """The token embedding matrix."""
    return model.embed.W_E.detach()


def embed(model: Model, tokens: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_model"]:
    """What the embedding layer makes of tokens (BLOOM norms it), before any positional embedding is added."""
    states = model.embed(tokens[None])
    return (model.embed_ln(states) if is_bridge(model) and hasattr(model, "embed_ln") else states)[0]


def bos_token(model: Model) -> list[int]:
    """The ids that the model's own tokenisation puts before a text: one BOS id, or none (`cfg.default_prepend_bos`)."""
    return [model.tokenizer.bos_token_id] if model.cfg.default_prepend_bos else []


@contextmanager
def asking(tensors: Iterable[Tensor], *, gradients: bool) -> Iterator[None]:
    """The tensors ask for gradients inside, or do not; afterwards each asks as it did before."""
    before = [(tensor, tensor.requires_grad) for tensor in tensors]
    try:
        for tensor, _ in before:
            tensor.requires_grad_(gradients)
        yield
    finally:
        for tensor, required in before:
            tensor.requires_grad_(required)


def check_normal(weights: Iterable[Tensor]) -> None:
    """Raises ValueError if there are inference tensors among a model's weights."""
    if any(weight.is_inference() for weight in weights):
        raise ValueError(
            "The model's weights are inference tensors (it was loaded under torch.inference_mode()), which can neither "
            "be edited nor give gradients. Load it outside of that, or take a copy: copy.deepcopy(model)."
        )


def frozen(model: Model) -> AbstractContextManager[None]:
    """No parameter asks for a gradient inside; afterwards each asks as it did before. Raises as `check_normal`."""
    check_normal(model.parameters())
    return asking(model.parameters(), gradients=False)


@checked
def optimize_layout(model: Model) -> Model:
    """Stores the weights in the order in which HookedTransformer reads them, and gives the same model back.

    HookedTransformer copies W_in, W_gate, W_out (gated MLPs), W_U and the attention matrices into another memory order
    at every call; stored in that order to begin with, the copies become views. Values, shapes, parameters and
    `state_dict` stay as they are; only strides change. A model that does not copy (TransformerBridge) is left alone.
    """
    if is_bridge(model):
        return model
    from transformer_lens.components.mlps.gated_mlp import GatedMLP

    _store(model.unembed.W_U, (1, 0))
    for block in model.blocks:
        for name in ("W_Q", "W_K", "W_V", "_W_K", "_W_V"):
            _store(dict(block.attn.named_parameters(recurse=False)).get(name), (0, 2, 1))
        _store(block.attn.W_O, (2, 0, 1))
        if isinstance(getattr(block, "mlp", None), GatedMLP):
            for weight in (block.mlp.W_in, block.mlp.W_gate, block.mlp.W_out):
                _store(weight, (1, 0))
    return model


def _store(weight: Tensor | None, order: tuple[int, ...]) -> None:
    """Makes `weight.permute(order)` contiguous. A quantized weight has another number of axes and is left alone."""
    if weight is not None and weight.ndim == len(order) and weight.is_floating_point():
        back = tuple(order.index(axis) for axis in range(len(order)))
        weight.data = weight.data.permute(order).contiguous().permute(back)
