"""The language part of a model that reads images or sound as well: a causal language model of its own."""

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from rome_lens.errors import FormatError
from rome_lens.models.loading.checkpoint import REPORTING, check_weights, is_composite

_SAME_ON_TEXT = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
"""Text models without a causal class of their own, and those that they are where no image gives positions."""


def language_part(hf_model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The model itself, or, if it reads images or sound as well, a causal model with the weights that read text.

    TransformerLens, given the whole, installs packages that its other parts need.

    Raises:
        FormatError: transformers has no causal class for its text model.
    """
    if not is_composite(hf_model.config):
        return hf_model
    config, decoder, head = _text_config(hf_model.config), hf_model.get_decoder(), hf_model.get_output_embeddings()
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not is_composite(config)
    if not known or decoder is None or head is None:
        raise FormatError(
            f"{name} is a {type(hf_model).__name__}, whose language part ({config.model_type}) transformers has no "
            "causal class for. Choose a model of text alone, or one with a language part of another family."
        )
    config.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        empty = kind(config)
    prefix = "" if isinstance(decoder, kind) else f"{kind.base_model_prefix}."
    tensors = {prefix + key: value for key, value in decoder.state_dict().items()}
    head_name = next(key for key, module in empty.named_modules() if module is empty.get_output_embeddings())
    tensors |= {f"{head_name}.{key}": value for key, value in head.state_dict().items()}
    made, info = kind.from_pretrained(None, config=config, state_dict=tensors, dtype=hf_model.dtype, **REPORTING)
    check_weights(made, info, name)
    made.config.name_or_path = hf_model.name_or_path
    return made.to(hf_model.device).eval().requires_grad_(True)


def _text_config(config: PretrainedConfig) -> PretrainedConfig:
    fields = config.get_text_config().to_dict()
    same = _SAME_ON_TEXT.get(fields["model_type"])
    if same is None:
        return type(config.get_text_config()).from_dict(fields)
    rope = {key: value for key, value in fields["rope_parameters"].items() if not key.startswith("mrope")}
    return CONFIG_MAPPING[same].from_dict({**fields, "model_type": same, "rope_parameters": rope})
