"""MLPs: the matrices that edits change, and what an MLP adds to the residual stream."""

from typing import Literal

MlpMatrix = Literal["in", "gate", "out"]
"""A matrix of an MLP: W_in (Llama's up_proj), W_gate (gate_proj, of gated MLPs), W_out (down_proj)."""
