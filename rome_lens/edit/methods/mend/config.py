"""The numbers of MEND, each with its source."""

from collections.abc import Sequence
from dataclasses import dataclass

from rome_lens.checking import checked
from rome_lens.edit.search.settings import check_ascending
from rome_lens.models import Model, output_matrix

_LAST_BLOCKS = 3


@checked
@dataclass(frozen=True, kw_only=True)
class MendConfig:
    """The numbers of MEND and of its training: the authors' (eric-mitchell/mend, config/config.yaml, alg/mend.yaml).

    Attributes:
        layers: the blocks whose MLP output matrices are edited, ascending; None: the last three, as in the paper.
        rank: of the editor's matrices (1920); where that is more than their width, they have full rank.
        hidden_layers: of the editor, besides its last (n_hidden).
        edit_learning_rate: what the learned step sizes of the layers begin with (edit_lr).
        learning_rate: of Adam, for the editor (lr).
        step_learning_rate: of Adam, for the step sizes (lr_lr).
        edit_weight: of the edit loss in the total (c_edit).
        locality_weight: of the locality loss (c_loc).
        batch_size: how many edits are averaged in a step of Adam (accumulate_bs).
        edits_per_pass: how many of them are run at once; it bounds memory, the result does not depend on it.
        clip: most norm of the gradient (grad_clip).
        validation_interval: steps of Adam between two looks at the validation records (val_interval: 5,000 edits, 500
            steps).
        patience: training ends after so many steps without a better validation loss (early_stop_patience: 20,000
            edits).
    """

    layers: Sequence[int] | None = None
    rank: int = 1920
    hidden_layers: int = 1
    edit_learning_rate: float = 1e-4
    learning_rate: float = 1e-6
    step_learning_rate: float = 1e-4
    edit_weight: float = 0.1
    locality_weight: float = 1.0
    batch_size: int = 10
    edits_per_pass: int = 10
    clip: float = 100.0
    validation_interval: int = 500
    patience: int = 2000

    def __post_init__(self) -> None:
        if self.layers is not None:
            check_ascending(self.layers)
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number from {least} on.")
        for name in ("edit_learning_rate", "learning_rate", "step_learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number above 0.")

    def layers_for(self, model: Model) -> tuple[int, ...]:
        """The blocks to edit.

        Raises:
            ValueError: no such block, or one that has no single MLP output matrix.
        """
        count = model.cfg.n_layers
        layers = range(max(0, count - _LAST_BLOCKS), count) if self.layers is None else self.layers
        for layer in layers:
            output_matrix(model, layer)
        return tuple(layers)


_LEAST = {
    "rank": 1,
    "hidden_layers": 0,
    "edit_weight": 0,
    "locality_weight": 0,
    "batch_size": 1,
    "edits_per_pass": 1,
    "validation_interval": 1,
    "patience": 1,
}
