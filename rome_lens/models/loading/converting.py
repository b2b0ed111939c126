"""Converts Hugging Face models to TransformerLens: the same weights, and the same function.

HookedTransformer is the faster of the two classes, but TransformerLens reimplements each family in it by hand. So it is
used only where its log-probabilities equal Hugging Face's; else a TransformerBridge is made, and compared too.

Nothing is copied without need. Most of TransformerLens' weights are views of Hugging Face's while the two are compared.
Only then is Hugging Face's model taken apart, and its matrices are laid out anew one by one.
"""

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rome_lens.errors import FormatError
from rome_lens.models.kinds import HAS_HOOKED, HookedTransformer, Model, is_bridge
from rome_lens.models.loading.comparing import Difference, Reference, difference, reference, unseen, unusual_fields
from rome_lens.models.loading.layout import optimize_layout
from rome_lens.models.loading.native_attention import keeps_past, use_native_attention
from rome_lens.models.running.bridge import pass_the_cache
from rome_lens.storage import is_out_of_memory

if HAS_HOOKED:
    from transformer_lens import loading_from_pretrained as names
else:
    from transformer_lens import supported_models as names

_PICKLED = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
_log = logging.getLogger(__name__)


def official_name(name: str) -> str:
    """A model's name on the hub. Raises ValueError if TransformerLens knows no such name."""
    return names.get_official_model_name(name)


def known_names() -> list[str]:
    """The names that TransformerLens knows, aliases included."""
    return list(names.make_model_alias_map() if HAS_HOOKED else names._model_alias_map())


def is_pickled(official: str) -> bool:
    """Whether a model that TransformerLens knows is published as a pickled file only."""
    return official.startswith(_PICKLED)


def converted(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> Model:
    """The same function as a Hugging Face model, with its weights, device and dtype, in a class of TransformerLens.

    The Hugging Face model is used up: it is taken apart, or becomes part of the result. The result's `loaded_as` says
    which class it has and why.

    Raises:
        FormatError: TransformerLens converts the model to neither class, or to another function.
    """
    hf_model.eval().requires_grad_(True)
    hf_model.config.architectures = [type(hf_model).__name__]
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        try:
            expected = reference(hf_model)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise FormatError(f"{name} is a {type(hf_model).__name__} that does not run ({error}).") from error
        _fill_in_biases(hf_model)
        model, why = _hooked(hf_model, name, expected) if HAS_HOOKED else (None, "TransformerLens has no other class")
        if model is None:
            model, why = _bridge(hf_model, tokenizer, name, expected, why)
    model.cfg.model_name = name
    _set_tokenizer(model, tokenizer)
    model.loaded_as = why
    _log.info("%s is loaded as a %s", name, why)
    return optimize_layout(model.eval())


def _hooked(hf_model: PreTrainedModel, name: str, expected: Reference) -> tuple[Model | None, str]:
    """A HookedTransformer, or None, and the reason."""
    try:
        model = _of_views(hf_model, expected.dtype)
        odd = unseen(hf_model.config, model.cfg)
        apart = difference(model, expected)
    except Exception as error:  # TransformerLens' code was not written for this configuration
        if is_out_of_memory(error):
            raise
        return None, f"TransformerLens does not convert it to HookedTransformer ({_first_line(error)})"
    if odd:
        return None, f"the configuration has {odd}, which HookedTransformer does not have in the same way"
    if not apart.is_small:
        return None, f"HookedTransformer's log-probabilities differ from Hugging Face's by {apart.nats:.2g} nats"
    _take_apart(hf_model)
    _make_own(optimize_layout(model))
    return model, (
        f"HookedTransformer: its log-probabilities differ from Hugging Face's by {apart.nats:.1g} nats at most"
    )


def _of_views(hf_model: PreTrainedModel, dtype: torch.dtype) -> Model:
    """A HookedTransformer whose weights are views of Hugging Face's wherever possible."""
    config = copy.deepcopy(hf_model.config)
    if not hasattr(config, "n_ctx") and hasattr(config, "max_position_embeddings"):
        config.n_ctx = config.max_position_embeddings  # TransformerLens reads GPT-2's old name
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)  # TransformerLens reads the config of a local model from its folder
        cfg = names.get_pretrained_model_config(folder, device=hf_model.device, dtype=dtype)
        weights = names.get_pretrained_state_dict(folder, cfg, hf_model, dtype=dtype)
    cfg.tokenizer_name = None  # else TransformerLens would read a tokenizer again
    model = HookedTransformer(cfg, move_to_device=False)
    for key, value in model.named_parameters():  # parameters that Hugging Face's class does not have
        weights.setdefault(key, torch.zeros_like(value) if ".W_" in key else value)
    weights = {key: value.detach().to(dtype) for key, value in weights.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.move_model_modules_to_device()
    return model


def _take_apart(hf_model: PreTrainedModel) -> None:
    """Drops all tensors of the model, which frees those that nothing else views."""
    for module in hf_model.modules():
        module._parameters.clear()
        module._buffers.clear()


def _make_own(model: nn.Module) -> None:
    """Gives each parameter memory of its own, in the same memory order; those that have it keep it."""
    seen: set[int] = set()
    for parameter in model.parameters():
        storage = parameter.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != parameter.nbytes:
            parameter.data = parameter.data.clone()
        seen.add(parameter.untyped_storage().data_ptr())


def _bridge(
    hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, expected: Reference, why: str
) -> tuple[Model, str]:
    kind = type(hf_model).__name__
    unusual = ", ".join(unusual_fields(hf_model.config)) or "nothing unusual"
    given = copy.deepcopy(tokenizer)
    given.init_kwargs["add_bos_token"] = True  # else TransformerLens would load the tokenizer again
    try:
        with tempfile.TemporaryDirectory() as folder:
            hf_model.config.save_pretrained(folder)  # TransformerLens reads the config of a local model from its folder
            model = TransformerBridge.boot_transformers(
                folder, hf_model=hf_model, tokenizer=given, device=hf_model.device, dtype=expected.dtype
            )
        apart = _with_its_own_attention(model.eval(), expected)
        if apart is None:
            use_native_attention(model)
            apart = difference(model, expected)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise FormatError(
            f"{name} is a {kind}, which TransformerLens does not convert ({_first_line(error)}). Its configuration has "
            f"{unusual}. Choose a decoder of another family, or without these."
        ) from error
    if not apart.is_small:
        raise FormatError(
            f"{name} is a {kind} that TransformerLens converts to another function: its log-probabilities differ from "
            f"Hugging Face's by {apart.nats:.2g} nats. Its configuration has {unusual}. "
            "Choose a model without these."
        )
    pass_the_cache(model, range(model.cfg.n_layers))  # for `model.generate`
    return model, f"TransformerBridge: {why}"


def _with_its_own_attention(model: Model, expected: Reference) -> Difference | None:
    """How far a Bridge with TransformerLens' attention is from the reference; None: too far, or it keeps no past."""
    try:
        apart = difference(model, expected)
        return apart if apart.is_small and keeps_past(model, expected.wide.rows[-1]) else None
    except (
        Exception
    ) as error:  # code that was not written for this configuration, or for this version of Hugging Face's
        if is_out_of_memory(error):
            raise
        return None


def _fill_in_biases(hf_model: PreTrainedModel) -> None:
    """Gives GPT-NeoX's attention biases of zero where it has none: TransformerLens converts it with biases only."""
    if hf_model.config.model_type == "gpt_neox":
        for layer in hf_model.base_model.layers:
            for linear in (layer.attention.query_key_value, layer.attention.dense):
                if linear.bias is None:
                    linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))


def _set_tokenizer(model: Model, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the model its tokenizer unchanged, where TransformerLens would make one that adds BOS.

    Special tokens that TransformerLens needs are set where they are missing; that changes no encoding.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.pad_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    ids = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and len(ids) > 1 and ids[0] == tokenizer.bos_token_id
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    place = "_tokenizer" if is_bridge(model) else "tokenizer"  # a Bridge's setter would make one that adds BOS
    setattr(model, place, tokenizer)
    model.cfg.tokenizer_prepends_bos = model.cfg.default_prepend_bos = begins
    if is_bridge(model):
        model.cfg.tokenizer_appends_eos = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides deprecation warnings, such as TransformerLens' about HookedTransformer, from the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield
