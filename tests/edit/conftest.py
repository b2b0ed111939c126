"""Fixtures of the tests of edits: rows of tokens, and the tiny models in Hugging Face's classes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


@pytest.fixture
def tokens() -> torch.Tensor:
    """Three rows of twelve tokens."""
    return torch.randint(1, 384, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hugging_face(tiny_folder: Callable[..., Path]) -> Callable[..., PreTrainedModel]:
    """Gives the tiny model of a family in Hugging Face's classes, which a test may change."""
    return lambda family, **options: AutoModelForCausalLM.from_pretrained(tiny_folder(family), **options).eval()
