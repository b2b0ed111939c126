"""Attention of a TransformerBridge by Hugging Face's own code.

TransformerBridge computes attention by itself in most families, so that scores and patterns can be hooked, and leaves
out what some configurations ask for (Cohere's interleaved rotations, Falcon's scaling with ALiBi).
"""

from types import MethodType

from transformer_lens.model_bridge.generalized_components import AttentionBridge

from rome_lens.models.kinds import Model


def use_native_attention(model: Model) -> None:
    """Lets the Bridge's attention be Hugging Face's module, with hooks on what goes in and comes out of it alone."""
    for block in model.blocks:
        if isinstance(attention := getattr(block, "attn", None), AttentionBridge):
            attention.__dict__["forward"] = MethodType(AttentionBridge.forward, attention)
