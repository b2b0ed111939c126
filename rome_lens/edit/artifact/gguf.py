"""Writes edits for llama.cpp and what is built on it (Ollama, LM Studio): a LoRA adapter, or a whole edited GGUF file.

GGUF keeps an MLP's matrices as blk.{layer}.ffn_down (W_out), ffn_up (W_in) and ffn_gate, each [d_out, d_in], however
Hugging Face's classes do. llama.cpp's converters permute and fuse attention's matrices alone, but for three families
that have W_gate and W_in in one tensor.
"""

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.edit.artifact.update import Update, of_rank
from rome_lens.errors import EditError, EditWarning, FormatError, UnavailableError, warn
from rome_lens.models.loading.gguf_header import check_gguf
from rome_lens.storage import check_new_file, check_room, digest, existing_file, foreign, new_file

TensorType = Literal["base", "F32", "F16", "BF16"]

_NAMED_OTHERWISE = {
    "cohere": "command-r",
    "glm": "chatglm",
    "gptbigcode": "starcoder",
    "hunyuandensev1": "hunyuan-dense",
    "mistral": "llama",
    "olmo3": "olmo2",
    "phi": "phi2",
}
"""llama.cpp's names for families, where its converters (`ModelBase.register`) call them otherwise than transformers."""

_GATE_THEN_UP = ("chatglm", "glm4", "phi3")
"""The architectures whose ffn_up has the rows of W_gate, then those of W_in."""

_NOT_RUN = ("gptj",)
"""Architectures that the table of names has and llama.cpp cannot run."""


def save_gguf_lora(
    path: str | os.PathLike[str], updates: Sequence[Update], family: str, *, about: str, overwrite: bool
) -> list[dict[str, Any]]:
    """Writes a LoRA adapter, with factors in float32, and describes its tensors. Raises as `Edit.to_gguf`."""
    architecture = _architecture_of(family)
    changes = _changes(updates, architecture)
    rank = max(len(right) for _, right in changes.values())
    check_new_file(path, overwrite=overwrite)
    import gguf

    with (
        new_file(path, overwrite=overwrite) as temporary,
        closing(gguf.GGUFWriter(temporary, architecture)) as writer,
    ):
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_description(about)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))  # it multiplies by alpha / rank of each tensor
        for name, (left, right) in changes.items():
            left, right = of_rank(left, right, rank)
            writer.add_tensor(f"{name}.lora_a", left.T.contiguous().numpy())
            writer.add_tensor(f"{name}.lora_b", right.T.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return [{"tensor": name, "rank": len(right), "type": "F32", "lost": 0.0} for name, (_, right) in changes.items()]


def save_edited_gguf(
    path: str | os.PathLike[str],
    updates: Sequence[Update],
    base: str | os.PathLike[str],
    family: str,
    *,
    tensor_type: TensorType | None,
    overwrite: bool,
) -> list[dict[str, Any]]:
    """Writes a copy of `base` with the edited tensors, and describes them. Raises as `Edit.to_gguf`."""
    _check_package()
    base = existing_file(base, "a GGUF file")
    check_new_file(path, overwrite=overwrite)
    check_gguf(base)
    import gguf

    with foreign(base, "is damaged, or is not a GGUF file", "Fetch it again."):
        reader = gguf.GGUFReader(base, "c")  # what is written into its arrays stays in memory
        architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE).contents()
    if reader.byte_order != "I":
        raise FormatError(f"{base} is of the other byte order than this machine. Edit it on a machine of its own.")
    if family and architecture != _architecture_of(family):
        raise EditError(f"The edit is one of a {family}, but {base} is of the architecture {architecture!r}.")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    written, rows = {}, []
    for name, (left, right) in _changes(updates, architecture).items():
        tensor = tensors.get(name)
        shape = None if tensor is None else tuple(int(length) for length in tensor.shape)
        if tensor is None or shape != (len(left), right.shape[1]):
            raise EditError(
                f"The edit needs a tensor {name} of {[len(left), right.shape[1]]}, but {base} has "
                f"{f'one of {list(shape)}' if shape else 'none of that name'}. Give the GGUF file of the model that "
                "it was made on."
            )
        with foreign(base, f"has {name} in a type that the package gguf cannot read", "Take a file of another type."):
            before = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        kind, change = _type_for(tensor.tensor_type, tensor_type), (left @ right).T
        cannot = f"has {name} in {kind.name}, which gguf cannot write"
        with foreign(base, cannot, 'Pass tensor_type="F16".'), np.errstate(over="ignore"):
            data = gguf.quantize((before + change).numpy(), kind)
        stored = torch.from_numpy(gguf.dequantize(data, kind).astype(np.float32))
        if not stored.isfinite().all():
            raise EditError(f"The edit makes {name} infinite in {kind.name}. Pass tensor_type='F32' or 'BF16'.")
        written[name] = data, kind
        lost = ((stored - before - change).norm() / change.norm()).item()
        rows.append({"tensor": name, "rank": len(right), "type": kind.name, "lost": lost})
        _warn_of_another_base(base, name, before, [update.made_for for update in updates if update.made_for])
    with new_file(path, overwrite=overwrite) as temporary:
        check_room(temporary.parent, base.stat().st_size + sum(data.nbytes for data, _ in written.values()))
        with temporary.open("wb") as opened:
            for piece in _pieces(reader, written):
                opened.write(piece)
    return rows


def _changes(
    updates: Sequence[Update], architecture: str
) -> dict[str, tuple[Float[Tensor, "d_in rank"], Float[Tensor, "rank d_out"]]]:
    """The factors of each tensor's change, by its name in GGUF.

    Raises:
        EditError: there are no updates, or the architecture has no such matrix.
    """
    if not updates:
        raise EditError("The edit has no updates, so there is nothing to write.")
    from gguf import MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS, TENSOR_NAMES

    has: Sequence[Any] = next(
        (MODEL_TENSORS[arch] for arch, name in MODEL_ARCH_NAMES.items() if name == architecture), []
    )
    kinds = {"out": MODEL_TENSOR.FFN_DOWN, "in": MODEL_TENSOR.FFN_UP, "gate": MODEL_TENSOR.FFN_GATE}
    changes: dict[str, Any] = {}
    for update in updates:
        kind, left, right = kinds[update.matrix], update.left, update.right
        if architecture in _GATE_THEN_UP and update.matrix != "out":
            halves = [right, torch.zeros_like(right)]
            kind, right = MODEL_TENSOR.FFN_UP, torch.cat(halves if update.matrix == "gate" else halves[::-1], dim=1)
        if kind not in has:
            raise EditError(
                f"The edit is of {update.place}, but llama.cpp knows no {kind.name} in the architecture "
                f"{architecture!r}. Serve the edited model with transformers (docs/serving.md)."
            )
        name = TENSOR_NAMES[kind].format(bid=update.layer) + ".weight"
        lefts, rights = changes.setdefault(name, ([], []))
        lefts.append(left)
        rights.append(right)
    return {name: (torch.cat(lefts, dim=1), torch.cat(rights)) for name, (lefts, rights) in changes.items()}


def _architecture_of(family: str) -> str:
    """llama.cpp's name for a family.

    Raises:
        UnavailableError: the package gguf is not installed.
        EditError: llama.cpp does not have the family, or it is unknown.
    """
    _check_package()
    from gguf import MODEL_ARCH_NAMES

    plain = _plain(family)
    known = {_plain(name): name for name in MODEL_ARCH_NAMES.values() if name not in _NOT_RUN}
    found = known.get(_plain(_NAMED_OTHERWISE.get(plain, plain)))
    if found is None:
        if not family:
            raise EditError(
                "The edit does not say of which family its model is (an earlier version saved it, or it was made by "
                'hand). Say so: dataclasses.replace(edit, family="Llama").'
            )
        raise EditError(
            f"llama.cpp has no architecture for the family {family!r}. Serve the edited model with transformers, "
            "or a LoRA adapter (to_peft) with vLLM (docs/serving.md)."
        )
    return found


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _check_package() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UnavailableError("Writing a GGUF file needs the package gguf: pip install 'rome-lens[gguf]'.")


def _type_for(base: Any, asked: TensorType | None) -> Any:
    """The type of an edited tensor: as asked; by default the base's if it is one of floats, else F16."""
    from gguf import GGMLQuantizationType

    if asked == "base" or (asked is None and base.name in ("F32", "F16", "BF16")):
        return base
    return GGMLQuantizationType[asked or "F16"]


def _warn_of_another_base(base: Path, name: str, before: Float[Tensor, "d_out d_in"], made_for: Sequence[str]) -> None:
    """Warns unless the tensor is one of the matrices, known by digests, that the edit was computed for."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    if made_for and not {digest(before.T.to(dtype)) for dtype in dtypes} & set(made_for):
        warn(
            f"The edit was computed for other weights than {name} of {base} (another quantization, or another model). "
            "Check that the edited model says what it should.",
            EditWarning,
        )


def _pieces(reader: Any, written: dict[str, tuple[Any, Any]]) -> Iterator[Any]:
    """The bytes of the edited file: the base's header with the new types and offsets, then every tensor."""
    offset = 0
    for tensor in reader.tensors:
        data, kind = written.get(tensor.name, (tensor.data, tensor.tensor_type))
        tensor.field.parts[4][0], tensor.field.parts[5][0] = int(kind), offset
        offset += data.nbytes + -data.nbytes % reader.alignment
    yield reader.data[: reader.data_offset]
    for tensor in reader.tensors:
        data = np.ascontiguousarray(written.get(tensor.name, (tensor.data, None))[0])
        yield data
        yield bytes(-data.nbytes % int(reader.alignment))
