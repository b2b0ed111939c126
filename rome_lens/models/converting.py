"""Models of TransformerLens out of Hugging Face's, with the weights as they are.

HookedTransformer is the faster of the two classes. A TransformerBridge is made where TransformerLens has no other class
(version 4), or does not convert the family to the other one.
"""

import tempfile

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rome_lens.models.kinds import HAS_HOOKED, HookedTransformer, Model

if HAS_HOOKED:
    from transformer_lens import loading_from_pretrained as names
else:
    from transformer_lens import supported_models as names

Device = str | torch.device | None


def official_name(name: str) -> str:
    """A model's name on the hub. Raises ValueError if TransformerLens knows no such name."""
    return names.get_official_model_name(name)


def known_names() -> list[str]:
    """The names, and others for the same models, that TransformerLens knows."""
    return list(names.make_model_alias_map() if HAS_HOOKED else names._model_alias_map())


def converted(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, device: Device, dtype: torch.dtype
) -> Model:
    """A model with a Hugging Face model's weights.

    Raises:
        ValueError: TransformerLens converts the family to neither class.
    """
    hf_model.config.architectures = [type(hf_model).__name__]
    if HAS_HOOKED:
        try:
            return _hooked(hf_model, tokenizer, name, device, dtype)
        except (NotImplementedError, AttributeError):  # a family, or a config of transformers 5, that it does not know
            pass
    return _bridge(hf_model, tokenizer, name, device, dtype)


def from_hub(official: str, device: Device, dtype: torch.dtype) -> tuple[Model, PreTrainedTokenizerBase]:
    """A model by its name on the hub, and its tokenizer. Raises OSError if the hub does not give it."""
    if not HAS_HOOKED:
        tokenizer = AutoTokenizer.from_pretrained(official)
        hf_model = AutoModelForCausalLM.from_pretrained(official, dtype=dtype)
        return converted(hf_model, tokenizer, official, device, dtype), tokenizer
    tokenizer = AutoTokenizer.from_pretrained(names.get_pretrained_model_config(official).tokenizer_name)
    model = HookedTransformer.from_pretrained_no_processing(official, tokenizer=tokenizer, device=device, dtype=dtype)
    return model, tokenizer


def _hooked(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, device: Device, dtype: torch.dtype
) -> Model:
    config = hf_model.config
    if not hasattr(config, "n_ctx") and hasattr(config, "max_position_embeddings"):
        config.n_ctx = config.max_position_embeddings  # TransformerLens asks for GPT-2's old name
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)  # TransformerLens reads the config of a local model from its folder
        cfg = names.get_pretrained_model_config(folder, device=device, dtype=dtype)
        cfg.model_name = name
        weights = names.get_pretrained_state_dict(folder, cfg, hf_model.to(dtype), dtype=dtype)
        model = HookedTransformer(cfg, tokenizer, move_to_device=False)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    model.move_model_modules_to_device()
    return model


def _bridge(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, device: Device, dtype: torch.dtype
) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        hf_model.config.save_pretrained(folder)  # TransformerLens reads the config of a local model from its folder
        model = TransformerBridge.boot_transformers(
            folder, hf_model=hf_model.to(dtype), tokenizer=tokenizer, device=device, dtype=dtype
        )
    model.cfg.model_name = name
    return model
