"""A trained MEND editor, and `mend`, which edits with it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from rome_lens.checking import check_whole, checked, checked_result
from rome_lens.data.records import Continuation, target_rows
from rome_lens.edit.artifact.edit import Edit, as_json, finite_matrix
from rome_lens.edit.artifact.health import OnUnhealthy
from rome_lens.edit.methods.mend.config import MendConfig
from rome_lens.edit.methods.mend.factors import edited_factors, gradient_factors
from rome_lens.edit.methods.mend.network import EditorNetwork
from rome_lens.edit.methods.mend.state import checked_history
from rome_lens.edit.methods.requests import Requests, only_request
from rome_lens.edit.search.settings import check_ascending
from rome_lens.errors import EditError
from rome_lens.models import Model, architecture_digest, output_matrix
from rome_lens.models.teacher_forcing import run_until
from rome_lens.storage import foreign, load_tensors, save_tensors

_KIND = "rome_lens mend editor 2"
_FACTS = {"layers": list, "widths": list, "config": dict, "model": str, "architecture": str, "history": list}


@checked_result
@dataclass(frozen=True, eq=False)
class MendEditor:
    """An editor for one model: `train_mend` returns it, `mend` uses it.

    Attributes:
        layers: blocks whose MLP output matrices it edits.
        network: the editor network.
        config: its hyper-parameters.
        model: name of the model that it was trained for.
        architecture: `architecture_digest` of that model (SHA-256 of its sizes and kind).
        history: losses during training, a row for each validation.
    """

    layers: tuple[int, ...]
    network: EditorNetwork = field(repr=False)
    config: MendConfig
    model: str
    architecture: str
    history: tuple[Mapping[str, float | int], ...] = field(default=(), repr=False)

    @classmethod
    def untrained(cls, model: Model, *, config: MendConfig | None = None, seed: int = 0) -> "MendEditor":
        """An untrained editor: its edits are steps of gradient descent with learning rate `config.edit_learning_rate`.

        Raises:
            ValueError: no such layer, or one without a single MLP output matrix.
        """
        config = MendConfig() if config is None else config
        layers = config.layers_for(model)
        network = _network((len(output_matrix(model, layers[0])), model.cfg.d_model), len(layers), config, seed).to(
            model.cfg.device
        )
        return cls(layers, network, config, str(model.cfg.model_name), architecture_digest(model))

    def check_model(self, model: Model) -> None:
        """Raises EditError unless the model has the architecture that the editor was trained for."""
        if self.architecture != architecture_digest(model):
            raise EditError(
                f"The editor was trained for another architecture: {self.model} ({self.architecture[:12]}), but the "
                f"model is {model.cfg.model_name} ({architecture_digest(model)[:12]}). Train one: train_mend(model, "
                "records, steps=...). No weight was changed."
            )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes the editor, without the model, as a safetensors file.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        facts = {
            "layers": self.layers,
            "widths": self.network.widths,
            "config": as_json(self.config),
            "model": self.model,
            "architecture": self.architecture,
            "history": [dict(row) for row in self.history],
        }
        save_tensors(path, self.network.state_dict(), kind=_KIND, facts=facts, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> "MendEditor":
        """Reads a file that `save` wrote."""
        tensors, facts = load_tensors(path, kind=_KIND, facts=_FACTS)
        with foreign(path, "holds no whole editor"):
            config, layers, widths = MendConfig(**facts["config"]), tuple(facts["layers"]), tuple(facts["widths"])
            _check_sizes(widths, layers, config, tensors)
            network = _network(widths, len(layers), config, seed=0)
            network.load_state_dict(tensors)
            history = checked_history(facts["history"])
        return cls(layers, network.to(device), config, facts["model"], facts["architecture"], history)


def _check_sizes(
    widths: tuple[int, ...], layers: tuple[int, ...], config: MendConfig, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Raises ValueError if there is no editor of these sizes, or if it has more parameters than the file holds, before
    it is built.
    """
    check_ascending(layers)
    key_width, output_width = widths
    check_whole(key_width=key_width, output_width=output_width, **{f"layer {each}": each + 1 for each in layers})
    width = sum(widths)
    least = (config.hidden_layers + 1) * (len(layers) + min(config.rank, width)) * width
    if least > (there := sum(tensor.numel() for tensor in tensors.values())):
        raise ValueError(f"its sizes need {least} numbers or more, but it holds {there}")


def _network(widths: tuple[int, ...], layers: int, config: MendConfig, seed: int) -> EditorNetwork:
    key_width, output_width = widths
    return EditorNetwork(
        (key_width, output_width),
        layers,
        rank=config.rank,
        hidden_layers=config.hidden_layers,
        step_size=config.edit_learning_rate,
        seed=seed,
    )


@checked
def mend(model: Model, request: Requests, *, editor: MendEditor, on_unhealthy: OnUnhealthy = "warn") -> Edit:
    """MEND (Mitchell et al. 2022): a trained editor transforms one fine-tuning gradient into an edit.

    W_out[l] -= alpha_l sum_i x_i d_i^T, where the editor maps token i's key and output gradient to (x_i, d_i). The loss
    is the mean negative log-probability of the target's tokens after the prompt. Only MLP output matrices of the last
    blocks are edited, as an Edit holds no others; the authors edit the input matrices (c_fc) as well.

    Args:
        request: What to write: an EditRequest, or a list of one.
        editor: From `train_mend` or `MendEditor.load`. `functools.partial(mend, editor=editor)` has the shape of the
            other methods.

    Returns:
        An Edit with an update for each of the editor's layers; its rank is the number of tokens that the loss depends
        on. Its health has the norms and `target_probability`.

    Raises:
        EditError: the editor is for another architecture, a weight or the edit is not finite, or the edit is unhealthy
            and `on_unhealthy` is "raise". No weight is changed.
        ValueError: several requests, or a prompt that exceeds the model's context.
    """
    request = only_request(request, "mend")
    editor.check_model(model)
    for layer in editor.layers:
        finite_matrix(model, layer)
    rows = target_rows(model, [Continuation(request.text, request.target, space=request.space)])
    batch = run_until(model, rows, min(editor.layers))
    factors = gradient_factors(model, batch, editor.layers)
    with torch.no_grad():
        edited = edited_factors(editor.network, [factors])
    updates = {layer: (key.T.contiguous(), delta) for layer, (key, delta) in edited[0].items()}
    if not all(side.isfinite().all() for pair in updates.values() for side in pair):
        raise EditError(
            "The edit is not finite. Check the model's weights and the editor (NaN?). No weight was changed."
        )
    return Edit.of(model, [request], updates, method="mend", config=as_json(editor.config), on_unhealthy=on_unhealthy)
