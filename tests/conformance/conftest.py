"""Tiny models of every family, in every class and processing that this TransformerLens has."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import rome_lens as rl
from rome_lens.models import Model
from rome_lens.models.kinds import HAS_HOOKED
from tests.tiny import CONFIGS

FAMILIES = [family for family in CONFIGS if family != "mixtral"]
BRIDGE_ONLY = {"gemma2", "gemma3", "phi"}  # HookedTransformer converts these from the hub alone
KINDS = ["bridge", "bridge-compatible", *(["hooked", "hooked-folded"] if HAS_HOOKED else [])]
EVERY = [
    pytest.param(family, kind, id=f"{family}-{kind}")
    for family in FAMILIES
    for kind in KINDS
    if kind.startswith("bridge") or family not in BRIDGE_ONLY
]


@pytest.fixture(scope="session")
def made(tiny_folder: Callable[..., Path]) -> Callable[[str, str], Model]:
    """Gives a tiny model of a family in one of `KINDS`, made once. Tests leave it as they found it."""
    models: dict[tuple[str, str], Model] = {}

    def make(family: str, kind: str) -> Model:
        if (family, kind) not in models:
            models[family, kind] = bridge(family, kind) if kind.startswith("bridge") else hooked(family, kind)
        return models[family, kind]

    def bridge(family: str, kind: str) -> Model:
        folder = tiny_folder(family)
        model = TransformerBridge.boot_transformers(
            str(folder),
            hf_model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            device="cpu",
        )
        model.cfg.default_prepend_bos = False
        if kind == "bridge-compatible":
            model.enable_compatibility_mode(disable_warnings=True)
        return model

    def hooked(family: str, kind: str) -> Model:
        model = rl.load_model(tiny_folder(family), device="cpu")
        if kind == "hooked-folded":
            model.process_weights_()
        return model

    return make
