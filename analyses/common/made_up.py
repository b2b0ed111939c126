"""Models of a given shape whose weights are random, saved as folders, and texts for them."""

from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

STOP = "."


def save_made_up(folder: Path, config: transformers.PretrainedConfig, dtype: torch.dtype, *, seed: int = 0) -> None:
    """Saves a random model and a tokenizer whose tokens are the words w0, w1, ... and the full stop.

    The model is made on torch's default device: a GPU does it much faster.
    """
    torch.manual_seed(seed)
    transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    vocabulary = {STOP: 0} | {f"w{number}": number for number in range(1, config.vocab_size)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=STOP))
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=STOP, eos_token=STOP)
    fast.save_pretrained(folder)


def words(count: int, vocabulary: int, *, seed: int = 0) -> list[str]:
    """Random words of that tokenizer, each a token."""
    return [f"w{number}" for number in np.random.RandomState(seed).randint(1, vocabulary, size=count)]
