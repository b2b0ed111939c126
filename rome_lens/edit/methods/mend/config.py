"""Hyper-parameters of MEND, each with its source."""

from collections.abc import Sequence
from dataclasses import dataclass

from rome_lens.checking import check_least, check_positive, checked
from rome_lens.edit.search.settings import check_ascending
from rome_lens.models import Model, output_matrix

_LAST_BLOCKS = 3


@checked
@dataclass(frozen=True, kw_only=True)
class MendConfig:
    """Hyper-parameters of MEND and its training: the authors' (eric-mitchell/mend, config/config.yaml, alg/mend.yaml).

    Attributes:
        layers: blocks whose MLP output matrices are edited, ascending; None: the last three, as in the paper.
        rank: rank of the editor's matrices (1920), at most their width.
        hidden_layers: hidden layers of the editor (n_hidden).
        edit_learning_rate: initial value of the learned step size of each layer (edit_lr).
        learning_rate: learning rate of Adam for the editor (lr).
        step_learning_rate: learning rate of Adam for the step sizes (lr_lr).
        edit_weight: weight of the edit loss (c_edit).
        locality_weight: weight of the locality loss (c_loc).
        batch_size: edits that are averaged in a step of Adam (accumulate_bs).
        edits_per_pass: edits that are run at once; bounds memory, the result does not depend on it.
        clip: bound on the norm of the gradient (grad_clip).
        validation_interval: steps of Adam between two validations (val_interval: 5,000 edits, 500 steps).
        patience: training stops after so many steps without a lower validation loss (early_stop_patience: 20,000
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
        check_least(self, hidden_layers=0, edit_weight=0, locality_weight=0)
        check_least(self, rank=1, batch_size=1, edits_per_pass=1, validation_interval=1, patience=1)
        check_positive(self, "edit_learning_rate", "learning_rate", "step_learning_rate", "clip")

    def layers_for(self, model: Model) -> tuple[int, ...]:
        """The blocks to edit.

        Raises:
            ValueError: a block does not exist, or has no single MLP output matrix.
        """
        count = model.cfg.n_layers
        layers = range(max(0, count - _LAST_BLOCKS), count) if self.layers is None else self.layers
        for layer in layers:
            output_matrix(model, layer)
        return tuple(layers)
