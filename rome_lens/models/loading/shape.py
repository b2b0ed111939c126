"""A model's sizes, as far as they tell what running it costs: of a model, or of a configuration without any weights."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from rome_lens.models.kinds import Model
from rome_lens.models.mlp.matrix import output_matrix


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        n_layers, d_model, d_mlp, d_vocab: as TransformerLens calls them.
        heads: width of the queries of all heads together.
        keys_and_values: width of their keys and values together, which groups of heads may share.
        in_block: how many numbers a block's matrices hold: each token is multiplied with all of them.
        parameters: how many numbers the weights hold; tied embeddings count twice, as HookedTransformer keeps them.
    """

    n_layers: int
    d_model: int
    d_mlp: int
    d_vocab: int
    heads: int
    keys_and_values: int
    in_block: int
    parameters: int


def shape_of(model: Model) -> Shape:
    """The sizes of a loaded model."""
    cfg = model.cfg
    return Shape(
        n_layers=cfg.n_layers,
        d_model=cfg.d_model,
        d_mlp=len(output_matrix(model, 0)),
        d_vocab=cfg.d_vocab,
        heads=cfg.n_heads * cfg.d_head,
        keys_and_values=2 * (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head,
        in_block=_matrices(model.blocks) // cfg.n_layers,
        parameters=_numbers(model),
    )


def shape_of_config(config: PretrainedConfig) -> Shape:
    """The sizes that a configuration of Hugging Face's gives a model. No weight takes memory.

    Raises:
        ValueError: it is not a decoder's whose blocks have one MLP each.
    """
    config = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    blocks = next((module for module in model.modules() if isinstance(module, nn.ModuleList)), None)
    if blocks is None or len(blocks) != config.num_hidden_layers or "experts" in str(blocks[0]).lower():
        raise ValueError(
            f"The configuration is of a {type(model).__name__}, expected a decoder of blocks with one dense MLP each."
        )
    heads, d_model = config.num_attention_heads, config.hidden_size
    width = getattr(config, "head_dim", None) or d_model // heads
    widest = max(max(p.shape) for p in blocks[0].parameters() if p.ndim == 2 and min(p.shape) == d_model)
    untied = config.vocab_size * d_model if config.tie_word_embeddings else 0
    return Shape(
        n_layers=len(blocks),
        d_model=d_model,
        d_mlp=getattr(config, "intermediate_size", None) or widest,
        d_vocab=config.vocab_size,
        heads=heads * width,
        keys_and_values=2 * (getattr(config, "num_key_value_heads", None) or heads) * width,
        in_block=_matrices(blocks) // len(blocks),
        parameters=_numbers(model) + untied,
    )


def _matrices(blocks: nn.Module) -> int:
    """How many numbers the matrices hold; HookedTransformer's for attention have an axis for heads, its biases two."""
    named = ((name.rpartition(".")[2], parameter) for name, parameter in blocks.named_parameters())
    return sum(p.numel() for name, p in named if p.ndim >= 2 and not name.lstrip("_").startswith("b"))


def _numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
