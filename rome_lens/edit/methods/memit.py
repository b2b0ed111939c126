"""MEMIT: a batch of requests, by least squares (Meng et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from rome_lens.checking import check_least, check_positive, checked
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.artifact.health import OnUnhealthy
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import covariances_for
from rome_lens.edit.methods.batch import BatchProblem, EditMemory, write_batch
from rome_lens.edit.methods.closed_forms import memit_factor
from rome_lens.edit.methods.preserve import Preserve
from rome_lens.edit.methods.requests import Requests
from rome_lens.edit.search.settings import BatchConfig
from rome_lens.edit.search.targets import MemitTargets
from rome_lens.models import Model

_WEIGHT_A_NEURON = 15_000 / 16_384  # the authors' covariance weight for GPT-J, divided by its d_mlp


@checked
@dataclass(frozen=True, kw_only=True)
class MemitConfig(BatchConfig):
    """Hyper-parameters of MEMIT; BatchConfig and SearchConfig have the other attributes.

    Attributes:
        covariance_weight: lambda, the weight of C against one request (mom2_update_weight: 15,000 for GPT-J and Llama
            3, 20,000 for GPT-2 XL). A single key's output moves by the share g / (lambda + g) of what was requested,
            where g = k C^-1 k has mean d_mlp over the keys of C. None: 15,000 / 16,384 * d_mlp, GPT-J's value scaled by
            width, so that this share is the same in a model of any width.
        frobenius_weight: lambda_n, the weight of |D|^2 of the update against one request, as in the norm constraint of
            ENCORE (Gupta et al. 2025, arXiv 2502.01636: 10 for GPT-2 XL and Llama 2, 20 for Llama 3), in the unit of
            squared keys.
        earlier_keys: weighs the keys of a sequence's earlier batches like those of this one, as AlphaEdit does; they
            are in the `memory`.
    """

    _method = "memit"
    covariance_weight: float | None = None
    frobenius_weight: float = 0.0
    earlier_keys: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.covariance_weight is not None:
            check_positive(self, "covariance_weight")
        check_least(self, frobenius_weight=0)

    def weight(self, d_mlp: int) -> float:
        """`covariance_weight`, or if it is None, its value for this width."""
        return _WEIGHT_A_NEURON * d_mlp if self.covariance_weight is None else self.covariance_weight


@checked
def memit(
    model: Model,
    requests: Requests,
    *,
    covariances: Mapping[int, KeyCovariance] | None = None,
    config: MemitConfig | None = None,
    targets: MemitTargets | None = None,
    preserve: Preserve = None,
    memory: EditMemory | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """MEMIT (Meng et al. 2023, arXiv 2210.07229): writes all requests at once, by least squares over several layers.

    Layers are edited in ascending order. Each is to contribute (z - h) / (number of layers left), where h and the keys
    are measured with the updates of earlier layers applied. Keys are plain means over contexts, as in the paper (the
    authors' code gives the bare prompt as much weight as all other contexts together); h is that of the bare prompt, as
    in their code; layers are counted among those given, as in their code (the paper has L - l + 1, which is the same
    for consecutive layers).

    Args:
        model: Model to run. Updates are applied meanwhile; afterwards its weights are bit for bit what they were.
        requests: What to write: one EditRequest or several, which may share a subject but not a whole prompt.
        covariances: Covariances of the keys, by layer, from `collect_covariance`; None: the one that ships for this
            model.
        config: Hyper-parameters; None: `MemitConfig()`, which edits the layers of the covariances.
        targets: Targets z, from `memit_targets`, whose contexts are used for the keys too; None: they are searched,
            which is most of the work.
        preserve: Prompts whose answers stay exactly as they are, up to rounding: texts, or Facts, EditRequests or
            records, whose prompt (for records, the request's) counts. Each layer's update is then the minimum among
            those that add nothing at any of their tokens, and as much to a bare request as to its mean over contexts.
            "auto": the prompts of `near_subjects`.
        memory: Of the sequence that this batch continues: the keys of its earlier batches, if the config wants them;
            updated once the edit is computed. None: no sequence.

    Returns:
        An Edit with one update per layer, whose rank is the number of requests, and its health, in which each figure is
        the worst among requests and layers.

    Raises:
        CovarianceError: a layer's covariance is missing, singular, or of another layer or model.
        EditError: a weight, loss or update is not finite, the targets are of another model, or the edit is unhealthy
            and `on_unhealthy` is "raise"; or what is to be preserved is what is to be changed, or does not fit into a
            layer's rank. No weight is changed.
        ValueError: no or contradicting requests, an invalid layer, targets of another edit, or a model that norms its
            MLPs' outputs.
    """
    config = MemitConfig() if config is None else config
    covariances = covariances_for(model, covariances)
    weight = config.weight(max((len(each.second_moment) for each in covariances.values()), default=0))
    config, form = (
        replace(config, covariance_weight=weight),
        partial(memit_factor, weight=weight, ridge=config.frobenius_weight),
    )
    problem = BatchProblem(
        "memit",
        form,
        True,
        requests,
        covariances,
        config,
        preserve=preserve,
        memory=memory if config.earlier_keys else None,
    )
    return write_batch(model, problem, targets, on_unhealthy, progress)
