"""Whether a converted model is the function that Hugging Face's class is: both read the same rows of tokens.

What a row of tokens cannot tell at little cost (a window longer than the row, a rotation that changes far out) is told
by comparing the configurations.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from rome_lens.models.loading.widened import HALF, in_float32

Logits = Callable[[Int[Tensor, "1 pos"]], Float[Tensor, "1 pos d_vocab"]]

LONG = 300
"""The longest row. A window or a scaled rotation that begins to matter later is not seen in it."""

_LENGTHS = (3, 24)
_KEPT = 8  # positions of a row that are compared, the last among them
_TOLERANCE = {torch.float64: 3e-5, torch.float32: 3e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_ROUNDINGS = 4  # every layer rounds as the embeddings are rounded here


@dataclass(frozen=True)
class Reading:
    """Rows of tokens, and the log-probabilities that Hugging Face's class gives at some positions of each."""

    rows: tuple[Int[Tensor, "1 _"], ...]
    log_probabilities: tuple[Float[Tensor, "_ d_vocab"], ...]
    tolerance: float
    """How far another model may be from these, as `Difference.share`; roundings in the embeddings are allowed for."""


@dataclass(frozen=True)
class Reference:
    """What Hugging Face's class reads: all rows, in float32 or better; of a model in half precision, a row as it is.

    In half precision a wrong function is within the roundings of the right one, so that it is told in float32.
    """

    dtype: torch.dtype
    wide: Reading
    half: Reading | None


@dataclass(frozen=True)
class Difference:
    """How far a model's log-probabilities are from the reference.

    `share` is the largest, over positions, of the root mean square of the difference over the vocabulary, as a share of
    the standard deviation of the log-probabilities there; `nats` the largest difference of any one.
    """

    share: float
    nats: float
    tolerance: float

    @property
    def is_small(self) -> bool:
        return self.share <= self.tolerance  # False for NaN


def reference(hf_model: PreTrainedModel) -> Reference:
    """What the model itself gives on its rows."""
    if hf_model.dtype == torch.float64 and hasattr(hf_model, "set_experts_implementation"):
        hf_model.set_experts_implementation("eager")  # the fast one has no float64
    rows = tuple(_rows(hf_model))
    half = _reading(hf_model, rows[:1], hf_model.dtype) if hf_model.dtype in HALF else None
    with in_float32(hf_model):
        wide = _reading(hf_model, rows, torch.float32)
    return Reference(hf_model.dtype, wide, half)


def difference_of_part(hf_model: PreTrainedModel, expected: Reference) -> Difference:
    """How far another model of Hugging Face's is from the reference, in float32."""
    with in_float32(hf_model):
        found = _reading(hf_model, expected.wide.rows, torch.float32)
    pairs = zip(found.log_probabilities, expected.wide.log_probabilities, strict=True)
    return _largest([_apart(*pair) for pair in pairs], expected.wide.tolerance)


def difference(model: Any, expected: Reference) -> Difference:
    """How far a model of TransformerLens is from the reference: in float32, or as it is if only that is far."""
    with in_float32(model):
        wide = _difference(model, expected.wide)
    if expected.half is None or not wide.is_small:
        return wide
    half = _difference(model, expected.half)
    return wide if half.is_small else half


def _reading(hf_model: PreTrainedModel, rows: tuple[Int[Tensor, "1 _"], ...], dtype: torch.dtype) -> Reading:
    read = _log_probabilities(lambda row: hf_model(row, attention_mask=torch.ones_like(row), use_cache=False).logits)
    found = tuple(map(read, rows))
    with _rounded(hf_model):
        rounding = _apart(read(rows[0]), found[0])[0]
    return Reading(rows, found, max(_TOLERANCE[dtype], _ROUNDINGS * rounding))


def _difference(model: Any, expected: Reading) -> Difference:
    read = _log_probabilities(lambda row: model(row, attention_mask=torch.ones_like(row), return_type="logits"))
    apart = [_apart(read(row), wanted) for row, wanted in zip(expected.rows, expected.log_probabilities, strict=True)]
    return _largest(apart, expected.tolerance)


def _largest(apart: list[tuple[float, float]], tolerance: float) -> Difference:
    share, nats = torch.tensor(apart, dtype=torch.float64).amax(0).tolist()  # max() of Python overlooks NaN
    return Difference(share, nats, tolerance)


def windows(config: PretrainedConfig) -> set[int]:
    """How many positions the layers with local attention see, without windows as long as the context."""
    config = config.get_text_config()
    context = _context(config)
    used = getattr(config, "use_sliding_window", None) in (None, True)
    sizes = [getattr(config, "sliding_window", None) if used else None, getattr(config, "window_size", None)]
    return {size for size in (*sizes, getattr(config, "attention_chunk_size", None)) if size and size < context}


def unseen(config: PretrainedConfig, cfg: Any) -> str | None:
    """What HookedTransformer does in another way without any row telling: in words, or None if there is nothing."""
    config = config.get_text_config()
    for size in windows(config):
        if size + _KEPT > LONG and not _same_window(config, cfg, size):
            return f"attention within {size} positions"
    for rope in _rotations(config):
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind != "default" and not (kind == "llama3" and _same_llama3(rope, cfg)):
            return f"a rotation of the kind {kind!r}"
    return next((f"{field}=True" for field in ("attention_bias", "mlp_bias") if _unread_bias(config, field)), None)


def unusual_fields(config: PretrainedConfig) -> list[str]:
    """What a configuration says otherwise than its class does by itself, sizes and names apart."""
    plain = {
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "model_type",
        "vocab_size",
        "_name_or_path",
    }
    return [
        f"{name}={value!r}"
        for name, value in sorted(config.to_diff_dict().items())
        if name not in plain and not name.endswith(("token_id", "_size", "_layers", "_heads"))
    ]


def _rows(hf_model: PreTrainedModel) -> Iterator[Int[Tensor, "1 pos"]]:
    config = hf_model.config.get_text_config()
    context = _context(config)
    lengths = {*_LENGTHS, *(size + _KEPT for size in windows(config))}
    fields = {**hf_model.config.to_dict(), **config.to_dict()}  # of an image's place too
    special = {
        value for name, value in fields.items() if re.search(r"token_(id|index)$", name) and isinstance(value, int)
    }
    ids = torch.tensor([i for i in range(min(config.vocab_size, 20_000)) if i not in special] or [0])
    generator = torch.Generator().manual_seed(0)
    for length in sorted({min(length, context) for length in lengths if length <= LONG}):
        chosen = torch.randint(len(ids), (1, length), generator=generator)
        yield ids[chosen].to(hf_model.device)


def _context(config: PretrainedConfig) -> int:
    """The longest row that a model reads; a very large number where there is no bound (XLNet says -1)."""
    longest = getattr(config, "max_position_embeddings", None) or 0
    return longest if longest > 0 else 1 << 62


def _log_probabilities(logits: Logits) -> Callable[[Int[Tensor, "1 pos"]], Float[Tensor, "kept d_vocab"]]:
    def read(row: Int[Tensor, "1 pos"]) -> Float[Tensor, "kept d_vocab"]:
        kept = sorted({round(i * (row.shape[1] - 1) / (_KEPT - 1)) for i in range(_KEPT)})
        with torch.inference_mode(False), torch.no_grad():
            return logits(row)[0, kept].double().log_softmax(-1)

    return read


def _apart(found: Float[Tensor, "kept d_vocab"], wanted: Float[Tensor, "kept d_vocab"]) -> tuple[float, float]:
    apart = found - wanted
    share = apart.square().mean(-1).sqrt() / wanted.std(-1).clamp_min(1e-6)
    return share.max().item(), apart.abs().max().item()


@contextmanager
def _rounded(hf_model: PreTrainedModel) -> Iterator[None]:
    """The model's embeddings are off by about what its dtype rounds."""

    def off(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        return output * (1 + torch.finfo(output.dtype).eps * noise.to(output))

    handle = hf_model.get_input_embeddings().register_forward_hook(off)
    try:
        yield
    finally:
        handle.remove()


def _same_window(config: PretrainedConfig, cfg: Any, size: int) -> bool:
    layers = getattr(config, "layer_types", None) or ["sliding_attention"] * cfg.n_layers
    kinds = ["local" if layer == "sliding_attention" else "global" for layer in layers]
    return bool(cfg.use_local_attn) and cfg.window_size == size and list(cfg.attn_types or ()) == kinds


def _rotations(config: PretrainedConfig) -> list[dict[str, Any]]:
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]


def _same_llama3(rope: dict[str, Any], cfg: Any) -> bool:
    names = {
        "original_max_position_embeddings": "NTK_original_ctx_len",
        "low_freq_factor": "NTK_by_parts_low_freq_factor",
        "high_freq_factor": "NTK_by_parts_high_freq_factor",
        "factor": "NTK_by_parts_factor",
    }
    return bool(cfg.use_NTK_by_parts_rope) and all(rope.get(hf) == getattr(cfg, tl) for hf, tl in names.items())


def _unread_bias(config: PretrainedConfig, field: str) -> bool:
    """Whether there are biases that TransformerLens reads in GPT-NeoX alone, and that may be as good as zero."""
    return bool(getattr(config, field, False)) and config.model_type != "gpt_neox"
