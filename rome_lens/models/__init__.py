"""The room that knows TransformerLens and Hugging Face: their classes, hook points, weights, and key/value caches.

The rest of the package asks it in the field's words (residual state, MLP output, key) and gets plain tensors back.
"""

from rome_lens.models.chat import user_turn
from rome_lens.models.hook_points import EMBEDDING, Hook, HookList, Kind, hooked, input_name, key_name, state_name
from rome_lens.models.identity import (
    architecture_digest,
    fingerprint_cosine,
    fingerprint_keys,
    model_family,
    model_identity,
)
from rome_lens.models.kinds import EditableModel, Model, name_of
from rome_lens.models.loading.layout import optimize_layout
from rome_lens.models.loading.load import load_model
from rome_lens.models.mlp import MlpMatrix
from rome_lens.models.mlp.contribution import contribution_change, mlp_contribution, mlp_output, norms_mlp_output
from rome_lens.models.mlp.inputs import preactivation_name, read_mlp_input
from rome_lens.models.mlp.matrix import OutputMatrix, find_matrix, find_output_matrix, output_matrix
from rome_lens.models.parameters import (
    check_layer,
    check_model,
    check_top_k,
    count_in_blocks,
    embeddings,
    frozen,
    in_float64,
    prefix_ids,
    requiring_grad,
)
from rome_lens.models.running.adding import added_by_key, check_added
from rome_lens.models.running.forward import (
    check_exposed,
    check_finite,
    embed,
    extend_past,
    logits,
    mlp_keys,
    pad,
    run,
    run_and_read,
    run_block,
    run_blocks,
    run_with_past,
)
from rome_lens.models.running.kv_cache import PastState
from rome_lens.models.running.memory import device_for_sums, tokens_that_fit
from rome_lens.models.running.prefix_tree import run_tree
from rome_lens.models.running.sampling import sample_text, sample_texts, write_on

__all__ = [
    "EMBEDDING",
    "EditableModel",
    "Hook",
    "HookList",
    "Kind",
    "MlpMatrix",
    "Model",
    "OutputMatrix",
    "PastState",
    "added_by_key",
    "architecture_digest",
    "check_added",
    "check_exposed",
    "check_finite",
    "check_layer",
    "check_model",
    "check_top_k",
    "contribution_change",
    "count_in_blocks",
    "device_for_sums",
    "embed",
    "embeddings",
    "extend_past",
    "find_matrix",
    "find_output_matrix",
    "fingerprint_cosine",
    "fingerprint_keys",
    "frozen",
    "hooked",
    "in_float64",
    "input_name",
    "key_name",
    "load_model",
    "logits",
    "mlp_contribution",
    "mlp_keys",
    "mlp_output",
    "model_family",
    "model_identity",
    "name_of",
    "norms_mlp_output",
    "optimize_layout",
    "output_matrix",
    "pad",
    "preactivation_name",
    "prefix_ids",
    "read_mlp_input",
    "requiring_grad",
    "run",
    "run_and_read",
    "run_block",
    "run_blocks",
    "run_tree",
    "run_with_past",
    "sample_text",
    "sample_texts",
    "state_name",
    "tokens_that_fit",
    "user_turn",
    "write_on",
]
