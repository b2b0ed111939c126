"""The one room that knows TransformerLens' own names: hook points, weights, BOS, key/value caches.

The rest of the package asks this folder for what it needs in the field's words (residual state, MLP output, key), and
gets plain tensors back.
"""

from rome_lens.models.adding import check_added
from rome_lens.models.hook_points import EMBEDDING, Hook, HookList, Kind, input_name, key_name, state_name
from rome_lens.models.identity import architecture_digest, model_identity
from rome_lens.models.kinds import Model
from rome_lens.models.kv_cache import PastState
from rome_lens.models.loading.converting import converted, is_pickled, known_names, official_name
from rome_lens.models.loading.load import load_model
from rome_lens.models.mlp import (
    PLAIN,
    MlpMatrix,
    OutputMatrix,
    contribution_change,
    find_matrix,
    find_output_matrix,
    key_width,
    mlp_contribution,
    mlp_output,
    norms_mlp_output,
    output_matrix,
    output_matrix_name,
)
from rome_lens.models.mlp_input import preactivation_name, read_mlp_input
from rome_lens.models.parameters import (
    asking,
    bos_token,
    check_layer,
    check_model,
    check_top_k,
    embed,
    embeddings,
    frozen,
    optimize_layout,
)
from rome_lens.models.prefix_tree import run_tree
from rome_lens.models.running import (
    check_finite,
    check_shown,
    logits,
    pad,
    run,
    run_and_read,
    run_block,
    run_blocks,
    run_with_past,
)
from rome_lens.models.sampling import sample_text, write_on

__all__ = [
    "EMBEDDING",
    "PLAIN",
    "Hook",
    "HookList",
    "Kind",
    "MlpMatrix",
    "Model",
    "OutputMatrix",
    "PastState",
    "architecture_digest",
    "asking",
    "bos_token",
    "check_added",
    "check_finite",
    "check_layer",
    "check_model",
    "check_shown",
    "check_top_k",
    "contribution_change",
    "converted",
    "embed",
    "embeddings",
    "find_matrix",
    "find_output_matrix",
    "frozen",
    "input_name",
    "is_pickled",
    "key_name",
    "key_width",
    "known_names",
    "load_model",
    "logits",
    "mlp_contribution",
    "mlp_output",
    "model_identity",
    "norms_mlp_output",
    "official_name",
    "optimize_layout",
    "output_matrix",
    "output_matrix_name",
    "pad",
    "preactivation_name",
    "read_mlp_input",
    "run",
    "run_and_read",
    "run_block",
    "run_blocks",
    "run_tree",
    "run_with_past",
    "sample_text",
    "state_name",
    "write_on",
]
