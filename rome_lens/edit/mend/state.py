"""A training of MEND while it runs: all that decides how it goes on, kept on disk so that a stopped run does."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rome_lens.edit.mend.config import MendConfig
from rome_lens.edit.mend.network import EditorNetwork
from rome_lens.errors import FormatError
from rome_lens.files import load_tensors, save_tensors

_KIND = "rome_lens mend training 1"
_FACTS = {"asked": dict, "step": int, "best_step": int, "sums": list, "history": list}


@dataclass(eq=False)
class TrainingState:
    """The editor, its optimiser, and what was seen so far.

    Attributes:
        network: the editor as it is.
        optimizer: Adam of its parameters.
        best: the editor's tensors when the validation loss was least, or as they are where there is none.
        step: how many steps were made.
        best_step: after how many of them `best` was.
        sums: of the training's edit and locality losses since the history's last row, and of how many steps.
        history: a row for each look at the validation records.
    """

    network: EditorNetwork
    optimizer: torch.optim.Adam
    best: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    best_step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    history: list[dict[str, float | int]] = field(default_factory=list)

    @classmethod
    def begun(cls, network: EditorNetwork, config: MendConfig) -> "TrainingState":
        """Nothing seen yet."""
        groups = [
            {"params": list(network.parts.parameters()), "lr": config.learning_rate},
            {"params": [network.step_sizes], "lr": config.step_learning_rate},
        ]
        return cls(network, torch.optim.Adam(groups))

    def keep_best(self) -> None:
        """The editor as it is becomes the best."""
        self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        self.best_step = self.step

    def save(self, path: str | os.PathLike[str], *, asked: Mapping[str, Any]) -> None:
        """Writes all of it in place of what was there, with the arguments."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.network.named_parameters():
            tensors |= {f"adam.{name}.{key}": value for key, value in self.optimizer.state[parameter].items()}
        facts = {name: getattr(self, name) for name in ("step", "best_step", "sums", "history")}
        save_tensors(path, tensors, kind=_KIND, facts={"asked": dict(asked), **facts}, overwrite=True)

    def resume(self, path: str | os.PathLike[str], *, asked: Mapping[str, Any]) -> None:
        """Takes over what `save` wrote.

        Raises:
            FormatError: the file is damaged or is something else.
            ValueError: it was begun with other arguments, records or weights.
        """
        tensors, facts = load_tensors(path, kind=_KIND, facts=_FACTS)
        if others := [name for name in asked if facts["asked"].get(name) != asked[name]]:
            before, now = ({name: given.get(name) for name in others} for given in (facts.pop("asked"), asked))
            raise ValueError(
                f"The checkpoint {Path(path)} was begun with {before}, but {now} was given. Give the same again, or "
                "another checkpoint."
            )
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "adam": {}}
        try:
            for name, tensor in tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = tensor.to(self.network.step_sizes.device)
            self.network.load_state_dict(parts["network"])
            for name, parameter in self.network.named_parameters():
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    self.optimizer.state[parameter][key] = parts["adam"][f"{name}.{key}"]
        except (KeyError, RuntimeError) as error:
            raise FormatError(f"{path} lacks a part of a checkpoint ({error}). Delete it to begin anew.") from error
        self.best = parts["best"]
        self.step, self.best_step = facts["step"], facts["best_step"]
        self.sums, self.history = facts["sums"], facts["history"]
