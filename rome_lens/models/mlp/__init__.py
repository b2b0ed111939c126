"""MLPs: the output matrix that edits change, and what an MLP adds to the residual stream."""

from rome_lens.models.mlp.contribution import contribution_change, mlp_contribution, mlp_output, norms_mlp_output
from rome_lens.models.mlp.matrix import OutputMatrix, find_output_matrix, output_matrix

__all__ = [
    "OutputMatrix",
    "contribution_change",
    "find_output_matrix",
    "mlp_contribution",
    "mlp_output",
    "norms_mlp_output",
    "output_matrix",
]
