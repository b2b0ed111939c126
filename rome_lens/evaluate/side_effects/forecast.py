"""Forecasts which other prompts an edit will affect, from their keys, without applying it."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import check_whole, checked
from rome_lens.data.records import PLACE, check_prompts
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.artifact.matrix import matrix_for
from rome_lens.edit.search.key import subject_activations
from rome_lens.errors import EditError
from rome_lens.models import Model, key_name, mlp_keys, pad
from rome_lens.models.labels import token_texts
from rome_lens.models.tokens import batches, tokenize


@checked
@torch.no_grad()
def forecast_bleed_over(
    model: Model, edit: Edit, prompts: Sequence[str], *, tokens_per_batch: int = 4096
) -> pd.DataFrame:
    """How strongly an edit acts on other prompts, relative to its own.

    Where the key is k, an update adds k @ left @ right to the MLP's output. With rank one that is (k . u) `right`, so
    the ratio of k . u to k* . u says how strongly the edit acts (k* is the key at the edited token of the bare edited
    prompt). For any rank, the added vectors are compared.

    Args:
        model: Model without the edit; left unchanged. An update's effect on the keys of later layers is therefore not
            included.
        edit: An edit made for this model.
        prompts: Texts; duplicates are dropped.

    Returns:
        A row for each prompt, edited layer and position: prompt, layer, position, token; `share`, the projection of the
        added vector on the one added at the edited prompt (1: as strong as there; 0: none; negative: away from the
        target); and `size`, the ratio of their norms. With rank one, size is |share|. If the edit has several requests,
        the one with the largest |share| is taken.

    Raises:
        EditError: an update does not fit the model, or changes another matrix than the MLP's output matrix.
        ValueError: no prompts; a prompt is blank or too long; the edit adds nothing at its own prompt.
    """
    check_prompts(prompts)
    check_whole(tokens_per_batch=tokens_per_batch)
    for update in edit.updates:
        matrix_for(model, update)  # raises unless the update fits
        if update.matrix != "out":
            raise EditError(
                f"The edit changes {update.place}, expected output matrices alone: what others add to the residual "
                "stream is not linear in what they read. Compare the models: compare_models."
            )
    texts = {text.ids: text for text in (tokenize(model, prompt) for prompt in prompts)}
    layers = list(dict.fromkeys(update.layer for update in edit.updates))
    there = {layer: _at_edited_prompts(model, edit, layer) for layer in layers}
    parts: dict[tuple[str, int], pd.DataFrame] = {}
    for batch in batches(sorted(texts, key=len), tokens_per_batch):
        keys = mlp_keys(model, *pad(batch), layers)
        for row, ids in enumerate(batch):
            for layer in layers:
                here = _added(edit, layer, keys[layer][row, : len(ids)])
                share, size = _compare(here, there[layer])
                parts[texts[ids].text, layer] = pd.DataFrame(
                    {
                        "prompt": texts[ids].text,
                        "layer": layer,
                        "position": range(len(ids)),
                        "token": token_texts(model, ids),
                        "share": share.numpy(),
                        "size": size.numpy(),
                    }
                )
    return pd.concat([parts[text.text, layer] for text in texts.values() for layer in layers], ignore_index=True)


@checked
def strongest_bleed_over(forecast: pd.DataFrame) -> pd.DataFrame:
    """The position of each prompt at which the edit acts most strongly.

    Args:
        forecast: Result of `forecast_bleed_over`.

    Returns:
        A row for each prompt and layer: prompt, layer; position, token, share and size where `size` is largest; and
        last_share, the share at the prompt's last position.

    Raises:
        ValueError: the frame is empty or lacks a column.
    """
    columns = ["prompt", "layer", "position", "token", "share", "size"]
    if forecast.empty or (missing := [column for column in columns if column not in forecast]):
        lacks = "has no rows" if forecast.empty else f"lacks the columns {missing}"
        raise ValueError(f"The forecast {lacks}. Give what forecast_bleed_over returns.")
    prompts = forecast.groupby(["prompt", "layer"], sort=False)
    strongest = forecast.loc[prompts["size"].idxmax()].reset_index(drop=True)
    return strongest.assign(last_share=prompts["share"].last().to_numpy())


def _added(edit: Edit, layer: int, keys: Float[Tensor, "pos d_mlp"]) -> Float[Tensor, "pos d_model"]:
    """What the edit adds to the layer's MLP output, in float32, on the CPU."""
    changes = [keys.float().cpu() @ update.left @ update.right for update in edit.updates if update.layer == layer]
    return torch.stack(changes).sum(0)


def _at_edited_prompts(model: Model, edit: Edit, layer: int) -> Float[Tensor, "request d_model"]:
    """What the edit adds at the edited token of each of its own prompts."""
    prompts = [(request, PLACE) for request in edit.requests]
    token = edit.config.get("token", "subject_end")
    added = _added(edit, layer, subject_activations(model, key_name(layer), layer, prompts, token=token))
    if not (added.norm(dim=-1) > 0).all():
        raise ValueError(
            f"The edit (made on {edit.model}) adds nothing at its own prompt in layer {layer} of "
            f"{model.cfg.model_name}, so there is nothing to compare with. Give the model that it was made on."
        )
    return added


def _compare(
    here: Float[Tensor, "pos d_model"], there: Float[Tensor, "request d_model"]
) -> tuple[Float[Tensor, " pos"], Float[Tensor, " pos"]]:
    """Share and size at each position, relative to the request with the largest |share|."""
    norms = there.norm(dim=-1)
    shares = here @ there.T / norms**2
    nearest = shares.abs().argmax(-1, keepdim=True)
    return shares.gather(-1, nearest)[:, 0], here.norm(dim=-1) / norms[nearest[:, 0]]
