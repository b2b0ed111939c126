"""Updates as a LoRA adapter, written and read, in the file format of Hugging Face's peft (peft itself is not needed).

LoRA adds B @ A * alpha / r to a module's weight [d_out, d_in] (Hu et al. 2021, arXiv 2106.09685, section 4.1). With
alpha = r, B = right^T and A = left^T this is (left @ right)^T, so an edit already is an adapter.

Servers ask for more than peft does. vLLM's `PEFTHelper` and SGLang's `LoRAConfig` read one r and one alpha, which all
modules here have, filled up with zeros; and servers that keep W_gate and W_in in one matrix want an adapter of both or
of neither (SGLang's `LoRAAdapter`), so that the other one gets an adapter of zeros.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from rome_lens.checking import check_whole
from rome_lens.edit.artifact.matrix import matrix_for
from rome_lens.edit.artifact.update import Update, of_rank
from rome_lens.errors import EditError, FormatError
from rome_lens.models import MlpMatrix
from rome_lens.models.mlp.huggingface import place_of_module
from rome_lens.storage import check_new_file, existing_file, foreign, load_json, new_file

_PARTNERS: dict[MlpMatrix, MlpMatrix] = {"in": "gate", "gate": "in"}
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save_lora(
    folder: str | os.PathLike[str],
    updates: Sequence[Update],
    base: PreTrainedModel,
    *,
    max_rank: int | None,
    overwrite: bool = False,
) -> None:
    """Writes the two files of a LoRA adapter for `base`; the weights of `base` are neither changed nor saved.

    Raises:
        FileExistsError: the folder already holds an adapter and `overwrite` is false.
        EditError: there are no updates, one does not fit the model, or the model's family is unknown; or the rank is
            more than `max_rank`.
    """
    check_whole(max_rank=max_rank)
    if not updates:
        raise EditError("The edit has no updates, so there is no adapter to write.")
    rank = max(update.rank for update in updates)
    if max_rank is not None and rank > max_rank:
        raise EditError(
            f"The edit is of rank {rank}, but max_rank is {max_rank}. Let the server take more (vLLM: --max-lora-rank) "
            f"or cut the edit: rl.edit.cut_rank(model, edit, {max_rank})."
        )
    updates = _with_partners(updates, base)
    matrices = [matrix_for(base, update) for update in updates]
    tensors = {}
    for update, matrix in zip(updates, matrices, strict=True):
        left, right = of_rank(update.left, update.right, rank)
        tensors[f"base_model.model.{matrix.module}.lora_A.weight"] = left.T.contiguous()
        tensors[f"base_model.model.{matrix.module}.lora_B.weight"] = right.T.contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name_or_path or None,
        "target_modules": [matrix.module for matrix in matrices],
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": not matrices[0].transposed,
        "inference_mode": True,
    }
    for name in (_WEIGHTS, _CONFIG):
        check_new_file(Path(folder) / name, overwrite=overwrite)
    with new_file(Path(folder) / _WEIGHTS, overwrite=overwrite) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with new_file(Path(folder) / _CONFIG, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load_lora(folder: str | os.PathLike[str]) -> list[Update]:
    """The updates that a LoRA adapter of MLP matrices holds; peft itself is not needed.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        FormatError: it is damaged, of another kind than LoRA, or changes more than MLP matrices.
    """
    config = load_json(Path(folder) / _CONFIG)
    wanted = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False}
    if not isinstance(config, dict) or any(config.get(name, value) != value for name, value in wanted.items()):
        raise FormatError(f"{folder} is no plain LoRA adapter, expected {wanted} in {_CONFIG}.")
    path = existing_file(Path(folder) / _WEIGHTS, "an adapter's weights")
    with foreign(path, "is damaged or is not an adapter of MLP matrices"):
        tensors = load_file(path)
        updates = []
        for name in sorted(name for name in tensors if name.endswith(".lora_A.weight")):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            down, up = tensors.pop(name), tensors.pop(name.replace(".lora_A.", ".lora_B."))
            scale = _of(config, "alpha", "lora_alpha", module) / _of(config, "rank", "r", module)
            layer, matrix = place_of_module(module)
            updates.append(Update(layer, down.T.float().contiguous(), scale * up.T.float().contiguous(), "", matrix))
        if tensors or not updates:
            raise ValueError(f"it holds {sorted(tensors)[:3] or 'no matrices'}, expected lora_A and lora_B of MLPs")
    return updates


def _of(config: Mapping[str, Any], kind: str, usual: str, module: str) -> float:
    """The rank or alpha of a module: that of its pattern, or the usual one."""
    patterns = config.get(f"{kind}_pattern") or {}
    return float(next((value for key, value in patterns.items() if f".{module}".endswith(f".{key}")), config[usual]))


def _with_partners(updates: Sequence[Update], base: PreTrainedModel) -> list[Update]:
    """The updates, and one of zeros for each W_in without its W_gate, or W_gate without its W_in, that `base` has."""
    places = {(update.layer, update.matrix) for update in updates}
    found = list(updates)
    for update in updates:
        partner = _PARTNERS.get(update.matrix)
        if partner and (update.layer, partner) not in places:
            zeros = Update(update.layer, 0 * update.left, 0 * update.right, matrix=partner)
            with suppress(EditError):  # an MLP without a gate
                matrix_for(base, zeros)
                found.append(zeros)
    return found
