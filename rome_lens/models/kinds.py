"""The classes of TransformerLens that a model may be of."""

from typing import TYPE_CHECKING, TypeAlias

from transformer_lens.model_bridge import TransformerBridge

try:
    from transformer_lens import HookedTransformer
except ImportError:  # TransformerLens 4 has the Bridge alone
    HookedTransformer = TransformerBridge

HAS_HOOKED = HookedTransformer is not TransformerBridge

if TYPE_CHECKING:
    Model: TypeAlias = "HookedTransformer | TransformerBridge"
else:
    Model = HookedTransformer | TransformerBridge
"""A model as TransformerLens has it, of either of its classes; every function takes both."""


def is_bridge(model: Model) -> bool:
    """Whether the model runs by Hugging Face's own code, with hooks put into it; else it is a HookedTransformer."""
    return isinstance(model, TransformerBridge)
