"""MEMIT: many requests in the sense of least squares (Meng et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from rome_lens.checking import checked
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.artifact.health import OnUnhealthy
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import covariances_for
from rome_lens.edit.methods.batch import BatchProblem, write_batch
from rome_lens.edit.methods.closed_forms import memit_factor
from rome_lens.edit.methods.memory import EditMemory
from rome_lens.edit.methods.requests import Requests
from rome_lens.edit.search.settings import BatchConfig, check_not_negative, check_positive
from rome_lens.edit.search.targets import MemitTargets
from rome_lens.models import Model

_WEIGHT_A_NEURON = 15_000 / 16_384  # of MEMIT's authors for GPT-J, by its d_mlp


@checked
@dataclass(frozen=True, kw_only=True)
class MemitConfig(BatchConfig):
    """The numbers of MEMIT. The other attributes are those of BatchConfig and SearchConfig.

    Attributes:
        covariance_weight: lambda, how much C weighs against one request (mom2_update_weight: 15,000 for GPT-J and
            Llama 3, 20,000 for GPT-2 XL). A key is answered to the share g / (lambda + g) with g = k C^-1 k, whose mean
            over the keys of C is d_mlp. None: 15,000 for each 16,384 of d_mlp, GPT-J's, so that such a key is answered
            to the same share in a model of any width.
        frobenius_weight: lambda_n, how much |D|^2 of the update itself weighs against one request, as the norm
            constraint of ENCORE (Gupta et al. 2025, arXiv 2502.01636: 10 for GPT-2 XL and Llama 2, 20 for Llama 3). In
            the unit of squared keys.
        earlier_keys: weighs the keys of a sequence's earlier batches like those of this one, as AlphaEdit does; they
            are in the `memory`.
    """

    covariance_weight: float | None = None
    frobenius_weight: float = 0.0
    earlier_keys: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.covariance_weight is not None:
            check_positive(self, "covariance_weight")
        check_not_negative(self, "frobenius_weight")

    def weight(self, d_mlp: int) -> float:
        """The weight that was given, or the one for this width."""
        return _WEIGHT_A_NEURON * d_mlp if self.covariance_weight is None else self.covariance_weight


@checked
def memit(
    model: Model,
    requests: Requests,
    *,
    covariances: Mapping[int, KeyCovariance] | None = None,
    config: MemitConfig | None = None,
    targets: MemitTargets | None = None,
    memory: EditMemory | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """MEMIT (Meng et al. 2023, arXiv 2210.07229): writes all requests in the sense of least squares.

    Each layer, in ascending order, is to bring its share of what is still missing: (z - h) / (layers left), where h and
    the keys are measured with the earlier layers' updates in place. Keys are plain means over the contexts, as in the
    paper (the authors' code gives the bare prompt as much weight as all others together); h is that of the
    bare prompt, as in their code; shares are counted over the given layers, as in their code (the paper has
    L - l + 1, the same for layers without a gap).

    Args:
        model: is run, with earlier layers' updates in its weights, which afterwards are bit for bit what they were.
        requests: What to write: one EditRequest or several. Several about the same subject are fine; two
            about the same text are not.
        covariances: Covariances of the keys, by layer, as `collect_covariance` gives them; None: the one that ships for
            this model.
        config: the numbers; None: `MemitConfig()`, which edits the layers of the covariances.
        targets: the states to be reached, from `memit_targets`; None: they are searched, which is most of the work.
            Their contexts are used for the keys.
        memory: of the sequence that this batch goes on with: the keys of its earlier batches, if the config wants them.
            It is changed once the edit is computed.
        on_unhealthy: what to do if the edit's `health` has problems: an EditWarning, an EditError, or nothing.
        progress: shows bars.

    Returns:
        An Edit with one update for each layer, of the rank of the number of requests, and its health, whose figures are
        the worst among requests and layers.

    Raises:
        CovarianceError: a layer's covariance is missing, singular, or of another layer or model.
        EditError: a weight, loss or update is not finite, the targets are of another model, or the edit is unhealthy
            and `on_unhealthy` is "raise". No weight is changed.
        ValueError: no or contradicting requests, a bad layer, targets of another edit, or a model that norms its MLPs'
            outputs.
    """
    config = MemitConfig() if config is None else config
    covariances = covariances_for(model, covariances)
    weight = config.weight(max((len(each.second_moment) for each in covariances.values()), default=0))
    config, form = (
        replace(config, covariance_weight=weight),
        partial(memit_factor, weight=weight, ridge=config.frobenius_weight),
    )
    problem = BatchProblem("memit", form, True, requests, covariances, config, memory if config.earlier_keys else None)
    return write_batch(model, problem, targets, on_unhealthy, progress)
