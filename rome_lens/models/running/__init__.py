"""Running a model: all of it, some blocks, with keys and values kept, over a tree of prefixes, or to write text."""

from rome_lens.models.running.adding import check_added
from rome_lens.models.running.forward import (
    check_exposed,
    check_finite,
    logits,
    mlp_keys,
    pad,
    reader,
    run,
    run_and_read,
    run_block,
    run_blocks,
    run_with_past,
)
from rome_lens.models.running.kv_cache import PastState
from rome_lens.models.running.memory import tokens_that_fit
from rome_lens.models.running.prefix_tree import run_tree
from rome_lens.models.running.sampling import sample_text, sample_texts, write_on

__all__ = [
    "PastState",
    "check_added",
    "check_exposed",
    "check_finite",
    "logits",
    "mlp_keys",
    "pad",
    "reader",
    "run",
    "run_and_read",
    "run_block",
    "run_blocks",
    "run_tree",
    "run_with_past",
    "sample_text",
    "sample_texts",
    "tokens_that_fit",
    "write_on",
]
