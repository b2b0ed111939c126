"""A tiny random Llama as a GGUF file, as llama.cpp's own writer makes it."""

from pathlib import Path

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

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
    """Byte-level BPE without merges, filled up to the vocabulary's size."""
    tokens = ["<|endoftext|>", *sorted(ByteLevel.alphabet()), "th"]
    tokens += [f"<unused{i}>" for i in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (VOCABULARY - 1))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
