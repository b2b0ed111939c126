"""EMMET: a batch of requests under equality constraints (Gupta et al. 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass

from rome_lens.checking import checked
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.artifact.health import OnUnhealthy
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.methods.batch import BatchProblem, write_batch
from rome_lens.edit.methods.closed_forms import emmet_factor
from rome_lens.edit.methods.preserve import Preserve
from rome_lens.edit.methods.requests import Requests
from rome_lens.edit.search.settings import BatchConfig
from rome_lens.edit.search.targets import MemitTargets
from rome_lens.models import Model


@checked
@dataclass(frozen=True, kw_only=True)
class EmmetConfig(BatchConfig):
    """Hyper-parameters of EMMET: those of BatchConfig and SearchConfig; equality constraints need no others.

    The authors' code (scalable-model-editing/unified-model-editing) adds 0.1 I to K^T C^-1 K of a batch, with C scaled
    by 10,000. That relaxes the equality: it is MEMIT with `covariance_weight=1000`.
    """

    _method = "emmet"


@checked
def emmet(
    model: Model,
    requests: Requests,
    *,
    covariances: Mapping[int, KeyCovariance] | None = None,
    config: EmmetConfig | None = None,
    targets: MemitTargets | None = None,
    preserve: Preserve = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """EMMET (Gupta et al. 2024, arXiv 2401.07453, 2403.14236): each layer maps every key to its share exactly.

    This is ROME's Eq. 2 for several keys. Arguments, result and all else are as in `memit`.

    Raises:
        EditError: the requests' keys are linearly dependent; and as `memit`.
    """
    config = EmmetConfig() if config is None else config
    problem = BatchProblem("emmet", emmet_factor, True, requests, covariances, config, preserve)
    return write_batch(model, problem, targets, on_unhealthy, progress)
