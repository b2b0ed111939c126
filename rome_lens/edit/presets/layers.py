"""Which layer others edit in known models."""

from rome_lens.checking import checked
from rome_lens.models import Model, check_model

_ROME = "kmeng01/rome, hparams/ROME"
_EASYEDIT = "zjunlp/EasyEdit, hparams/ROME"

SUGGESTED_LAYERS: dict[str, tuple[int, str]] = {
    "smollm2-135m": (4, "the layer sweep of this package"),
    "gpt2-medium": (8, _EASYEDIT),
    "gpt2-large": (12, _EASYEDIT),
    "gpt2-xl": (17, _ROME),
    "gpt-j-6b": (5, _ROME),
    "llama-7b": (5, _EASYEDIT),
    "llama-2-7b": (5, _EASYEDIT),
    "llama-2-7b-hf": (5, _EASYEDIT),
    "meta-llama-3-8b": (5, _EASYEDIT),
    "mistral-7b-v0.1": (5, _EASYEDIT),
    "qwen2.5-7b": (5, _EASYEDIT),
}
"""By a model's name on the hub without its owner, in small letters: the layer that ROME edits, and who says so."""


@checked
def suggested_layer(model: Model) -> int:
    """The layer that ROME's authors, or EasyEdit, edit in this model: where to start, not what is best for each fact.

    Raises:
        ValueError: none is known for the model's name.
    """
    check_model(model)
    known = find_suggestion(model)
    if known is None:
        raise ValueError(
            f"No edit layer is known for {model.cfg.model_name!r}, expected one of {', '.join(SUGGESTED_LAYERS)}. "
            "Trace some facts (causal_trace with kind='mlp') and take a layer where the subject's last token matters."
        )
    return known


def find_suggestion(model: Model) -> int | None:
    """As `suggested_layer`, but None if none is known."""
    name = str(model.cfg.model_name).rsplit("/", 1)[-1].lower()
    return SUGGESTED_LAYERS[name][0] if name in SUGGESTED_LAYERS else None
