"""Tiny random models as GGUF files, as llama.cpp's own writer makes them."""

from pathlib import Path

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel

from tests.tiny import VOCABULARY

_LAYERS, _MODEL, _MLP, _HEADS = 2, 32, 64, 4


def save_gguf(path: Path) -> Path:
    """Writes the file, and gives its path back."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(_LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(_MODEL)
    writer.add_feed_forward_length(_MLP)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_MODEL // _HEADS)
    writer.add_vocab_size(VOCABULARY)
    _add_tokenizer(writer)
    shapes = {"token_embd.weight": (VOCABULARY, _MODEL), "output.weight": (VOCABULARY, _MODEL)}
    shapes["output_norm.weight"] = (_MODEL,)
    for i in range(_LAYERS):
        shapes |= {f"blk.{i}.attn_{name}.weight": (_MODEL, _MODEL) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.{name}_norm.weight": (_MODEL,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{i}.ffn_{name}.weight": (_MLP, _MODEL) for name in ("gate", "up")}
        shapes[f"blk.{i}.ffn_down.weight"] = (_MODEL, _MLP)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Byte-level BPE without merges, filled up to the vocabulary's size.

    It has the bytes of ASCII alone: of a part of a character llama.cpp would give no log-probabilities.
    """
    ascii_bytes = sorted(char for char in ByteLevel.alphabet() if ord(char) < 127 or 0x100 <= ord(char) <= 0x121)
    tokens = ["<|endoftext|>", *ascii_bytes, "th"]
    tokens += [f"<unused{i}>" for i in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (VOCABULARY - 1))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def converted(path: Path, hf_model: PreTrainedModel, architecture: str) -> Path:
    """Writes a model of transformers as llama.cpp's converter does for these families, and gives the path back."""
    config = hf_model.config
    writer = gguf.GGUFWriter(path, architecture)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(d_head)
    writer.add_value_length(d_head)
    writer.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", 1e-5))
    writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", 1e-5))
    writer.add_parallel_residual(True)
    if rope := getattr(config, "rope_parameters", None):
        writer.add_rope_dimension_count(int(d_head * rope.get("partial_rotary_factor", 1)))
        writer.add_rope_freq_base(rope["rope_theta"])
    if architecture == "gemma2":
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(VOCABULARY)
    _add_tokenizer(writer)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    tied = config.tie_word_embeddings
    for name, value in hf_model.state_dict().items():
        if name.endswith((".attn.bias", ".masked_bias", "inv_freq")) or (tied and name == "lm_head.weight"):
            continue
        values = value.float().numpy()
        if architecture == "gpt2" and ".c_" in name and name.endswith(".weight"):
            values = values.T  # a Conv1D
        if architecture == "gemma2" and "norm" in name:
            values = values + 1
        if architecture == "gptneox" and "query_key_value" in name:
            values = values.reshape(heads, 3, d_head, -1).swapaxes(0, 1).reshape(value.shape)
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            halves = (heads if "q_proj" in name else kv_heads, 2, d_head // 2, value.shape[1])
            values = values.reshape(halves).swapaxes(1, 2).reshape(value.shape)
        new = names.get_name(name, (".weight", ".bias"))
        assert new, f"{name} has no name in {architecture}"
        writer.add_tensor(new, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
