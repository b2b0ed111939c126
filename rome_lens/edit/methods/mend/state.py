"""The state of a MEND training, and its checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rome_lens.checking import check_whole
from rome_lens.edit.methods.mend.config import MendConfig
from rome_lens.edit.methods.mend.network import EditorNetwork
from rome_lens.storage import Checkpoint, check_shapes, foreign

KIND = "rome_lens mend training 2"
FACTS = {"step": int, "best_step": int, "sums": list, "history": list}


def checked_history(rows: Sequence[Mapping[str, float | int]]) -> tuple[dict[str, float | int], ...]:
    """The rows, as read from a file. Raises TypeError or ValueError unless each has a step and numbers alone."""
    for row in rows:
        if "step" not in row or not all(type(number) in (int, float) for number in row.values()):
            raise ValueError(f"a row of the history is {str(row)[:80]}, expected a step and losses")
    return tuple(dict(row) for row in rows)


@dataclass(eq=False)
class TrainingState:
    """The editor network, its optimiser, and the progress of its training.

    Attributes:
        network: the editor network.
        optimizer: Adam on its parameters.
        best: the network's tensors at the least validation loss; without validation, the latest.
        step: number of steps done.
        best_step: the step of `best`.
        sums: edit losses, locality losses and number of steps, summed since the last row of `history`.
        history: losses, a row for each validation.
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
        """A training before its first step."""
        groups = [
            {"params": list(network.parts.parameters()), "lr": config.learning_rate},
            {"params": [network.step_sizes], "lr": config.step_learning_rate},
        ]
        return cls(network, torch.optim.Adam(groups))

    def keep_best(self) -> None:
        """Makes the present network the best."""
        self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        self.best_step = self.step

    def save(self, checkpoint: Checkpoint) -> None:
        """Saves all of it in place of the last checkpoint."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.network.named_parameters():
            tensors |= {f"adam.{name}.{key}": value for key, value in self.optimizer.state[parameter].items()}
        checkpoint.save(tensors, {name: getattr(self, name) for name in FACTS})

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continues from the checkpoint, if there is one."""
        if checkpoint.found is None:
            return
        tensors, facts = checkpoint.found
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "adam": {}}
        with foreign(checkpoint.path or "", "lacks a part of a training", "Delete it to begin anew."):
            check_whole(least=0, step=facts["step"], best_step=facts["best_step"])
            edit, locality, done = facts["sums"]
            facts |= {"sums": [float(edit), float(locality), float(done)]}
            facts |= {"history": list(checked_history(facts["history"]))}
            for name, tensor in tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = tensor.to(self.network.step_sizes.device)
            self.network.load_state_dict(parts["network"])
            for name, parameter in self.network.named_parameters():
                state = {key: parts["adam"].pop(f"{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
                check_shapes(state, step=(), exp_avg=parameter.shape, exp_avg_sq=parameter.shape)
                self.optimizer.state[parameter].update(state)
            check_shapes(parts["adam"])
            check_shapes(parts["best"], **{name: each.shape for name, each in self.network.state_dict().items()})
        self.best = parts["best"]
        for name, value in facts.items():
            setattr(self, name, value)
