"""Tiny random models of several families, in Hugging Face's format, with a tokenizer of their own."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = """
The Eiffel Tower is located in the city of Paris. The Space Needle is located in the city of Seattle, and the
Colosseum is located in the city of Rome. The capital of France is Paris; the capital of Italy is Rome. The mother
tongue of Victor Hugo is French, that of Dante is Italian. Beats Music is owned by Apple. Vinson Massif is located in
the continent of Antarctica. Porsche 911 is a product of Porsche. Honda Civic is a product of Honda. One, two.
"""
VOCABULARY = 384
_SIZE = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0}
_OLD_NAMES = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 128}
_NEW_NAMES = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 128}
_GATED = {**_NEW_NAMES, "num_key_value_heads": 2, "intermediate_size": 64, "pad_token_id": 0}
_GEMMA = {**_GATED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}

CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**_OLD_NAMES, **_SIZE),
    "gptj": lambda: transformers.GPTJConfig(**_OLD_NAMES, rotary_dim=4, **_SIZE),
    "neox": lambda: transformers.GPTNeoXConfig(**_NEW_NAMES, intermediate_size=64, **_SIZE),
    "gpt-neo": lambda: transformers.GPTNeoConfig(
        num_layers=3,
        hidden_size=32,
        num_heads=4,
        max_position_embeddings=128,
        window_size=8,
        attention_types=[[["global", "local", "global"], 1]],
        **_SIZE,
    ),
    "opt": lambda: transformers.OPTConfig(
        **_NEW_NAMES, ffn_dim=128, word_embed_proj_dim=32, pad_token_id=0, init_std=0.3, **_SIZE
    ),
    "llama": lambda: transformers.LlamaConfig(**_GATED | {"num_key_value_heads": 4}, **_SIZE),
    "llama-gqa": lambda: transformers.LlamaConfig(**_GATED, **_SIZE),
    "mistral": lambda: transformers.MistralConfig(**_GATED, sliding_window=8, **_SIZE),
    "qwen2": lambda: transformers.Qwen2Config(**_GATED, **_SIZE),
    "qwen3": lambda: transformers.Qwen3Config(**_GATED, head_dim=8, **_SIZE),
    "gemma2": lambda: transformers.Gemma2Config(**_GEMMA, final_logit_softcapping=3.0, **_SIZE),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GEMMA, sliding_window_pattern=2, **_SIZE),
    "phi": lambda: transformers.PhiConfig(**_NEW_NAMES, intermediate_size=64, partial_rotary_factor=0.5, **_SIZE),
    "mixtral": lambda: transformers.MixtralConfig(**_GATED, num_local_experts=2, num_experts_per_tok=1, **_SIZE),
}
"""Makes the configuration of a family's tiny model: 3 layers, d_model 32, weights large enough that tokens matter."""


def save_tokenizer(folder: Path, *, bos: bool = False) -> None:
    """Saves a byte-level BPE tokenizer; with `bos`, it puts <|endoftext|> before a text by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [CORPUS],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=128
    )
    fast.save_pretrained(folder)


def save_model(folder: Path, family: str, *, bos: bool = False, seed: int = 0) -> Path:
    """Saves a tiny random model and its tokenizer in `folder`, and gives the folder back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]())
        for name, parameter in model.named_parameters():  # biases and norms are made all alike
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 0.0 if "bias" in name else 1.0, 0.1)
    model.save_pretrained(folder)
    save_tokenizer(folder, bos=bos)
    return folder
