"""AlphaEdit: a batch of requests, projected to the null space of ordinary keys (Fang et al. 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from rome_lens.checking import check_positive, checked
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.artifact.health import OnUnhealthy
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.methods.batch import BatchProblem, EditMemory, write_batch
from rome_lens.edit.methods.closed_forms import alphaedit_factor
from rome_lens.edit.methods.preserve import Preserve
from rome_lens.edit.methods.requests import Requests
from rome_lens.edit.search.settings import BatchConfig
from rome_lens.edit.search.targets import MemitTargets
from rome_lens.models import Model


@checked
@dataclass(frozen=True, kw_only=True)
class AlphaEditConfig(BatchConfig):
    """Hyper-parameters of AlphaEdit (jianghoucheng/AlphaEdit, hparams); BatchConfig has the other attributes.

    Attributes:
        null_space_threshold: eigenvectors of C with an eigenvalue (mean square of keys) below this span the null space
            (nullspace_threshold: 2e-2 for GPT-J and Llama 3 8B). Its unit is that of squared keys, so it depends on the
            model.
        ridge: weight of the update's norm, in the same unit (L2: 10 for both).
        earlier_keys: protects the keys of a sequence's earlier batches too, as the paper and the authors' code do; they
            are in the `memory`.
    """

    _method = "alphaedit"
    null_space_threshold: float = 2e-2
    ridge: float = 10.0
    earlier_keys: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "null_space_threshold", "ridge")


@checked
def alphaedit(
    model: Model,
    requests: Requests,
    *,
    covariances: Mapping[int, KeyCovariance] | None = None,
    config: AlphaEditConfig | None = None,
    targets: MemitTargets | None = None,
    preserve: Preserve = None,
    memory: EditMemory | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """AlphaEdit (Fang et al. 2024, arXiv 2410.02355): updates only the null space of ordinary keys.

    Arguments, result and all else are as in `memit`, but C may be singular. Without a `memory` it is one batch by
    itself, and no keys of earlier batches are protected.

    Raises:
        CovarianceError: no eigenvalue of C is below the threshold; and as `memit`.
    """
    config = AlphaEditConfig() if config is None else config
    form = partial(alphaedit_factor, threshold=config.null_space_threshold, ridge=config.ridge)
    problem = BatchProblem(
        "alphaedit",
        form,
        False,
        requests,
        covariances,
        config,
        preserve=preserve,
        memory=memory if config.earlier_keys else None,
    )
    return write_batch(model, problem, targets, on_unhealthy, progress)
