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


def config(family: str) -> transformers.PretrainedConfig:
    """The configuration of a tiny model: 3 layers, d_model 32, random weights large enough that tokens matter."""
    if family == "gpt2":
        return transformers.GPT2Config(n_layer=3, n_embd=32, n_head=4, n_positions=128, **_SIZE)
    if family == "gptj":
        return transformers.GPTJConfig(n_layer=3, n_embd=32, n_head=4, rotary_dim=4, n_positions=128, **_SIZE)
    if family == "neox":
        return transformers.GPTNeoXConfig(
            num_hidden_layers=3,
            hidden_size=32,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=128,
            **_SIZE,
        )
    return transformers.LlamaConfig(
        num_hidden_layers=3,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads={"llama": 4, "llama-gqa": 2}[family],
        intermediate_size=64,
        max_position_embeddings=128,
        **_SIZE,
    )


def save_model(folder: Path, family: str, *, bos: bool = False, seed: int = 0) -> Path:
    """Saves a tiny random model and its tokenizer in `folder`, and gives the folder back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config(family))
    model.save_pretrained(folder)
    save_tokenizer(folder, bos=bos)
    return folder
