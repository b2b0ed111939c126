"""The classes that a model may be of."""

from typing import TYPE_CHECKING, TypeAlias

from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from rome_lens.checking import remedies

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


EditableModel: TypeAlias = Model | PreTrainedModel
"""What an edit can be applied to: a model of TransformerLens or of Hugging Face."""


def is_bridge(model: Model) -> bool:
    """Whether the model is a TransformerBridge (Hugging Face's code with hooks), not a HookedTransformer."""
    return isinstance(model, TransformerBridge)


def name_of(model: EditableModel) -> str:
    """The model's name."""
    if isinstance(model, PreTrainedModel):
        return model.name_or_path or type(model).__name__
    return str(model.cfg.model_name)


def _as_model(value: object) -> str:
    """How to get a model of TransformerLens out of what wraps it, or from Hugging Face's; "" if there is no way."""
    inside = dict(value.named_modules()) if isinstance(value, nn.Module) else {}
    foreign = [path for path, module in inside.items() if isinstance(module, PreTrainedModel)]
    if any(type(module).__module__.startswith("peft.") for module in inside.values()):
        return "load_model(model.merge_and_unload(), tokenizer=...)"
    if found := [path for path, module in inside.items() if isinstance(module, Model)]:
        return f"model.{found[0]}"
    return f"load_model({'.'.join(filter(None, ['model', foreign[0]]))}, tokenizer=...)" if foreign else ""


remedies |= {HookedTransformer: _as_model, TransformerBridge: _as_model}
