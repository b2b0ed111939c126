"""Many facts written at once, over several layers: MEMIT, EMMET and AlphaEdit.

They share everything but the closed form: the states z that are to be reached after the last edited layer, and how what
is missing to them is spread over the layers (Meng et al. 2023, arXiv 2210.07229, section 4 and Algorithm 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rome_lens.checking import checked
from rome_lens.edit.closed_forms import alphaedit_factor, emmet_factor, memit_factor
from rome_lens.edit.config import AlphaEditConfig, BatchConfig, EmmetConfig, MemitConfig
from rome_lens.edit.covariance import KeyCovariance
from rome_lens.edit.health import EditHealth, OnUnhealthy, report_problems, update_norms
from rome_lens.edit.spread import ClosedForm, spread
from rome_lens.edit.targets import MemitTargets, check_requests, memit_targets
from rome_lens.edit.value import search_figures
from rome_lens.edit.weights import Edit, as_json, finite_matrix
from rome_lens.errors import CovarianceError
from rome_lens.facts import EditRequest
from rome_lens.models import Model, norms_mlp_output, output_matrix


@checked
def memit(
    model: Model,
    requests: Sequence[EditRequest],
    *,
    covariances: Mapping[int, KeyCovariance],
    config: MemitConfig | None = None,
    targets: MemitTargets | None = None,
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
        requests: what to write. Several about the same subject are fine; two about the same text are not.
        covariances: of the keys, by layer, as `collect_covariance` gives them.
        config: the numbers; None: `MemitConfig()`, which edits the layers of the covariances.
        targets: the states to be reached, from `memit_targets`; None: they are searched, which is most of the work.
            Their contexts are used for the keys.
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
    weight = config.weight(max((len(each.second_moment) for each in covariances.values()), default=0))
    config, form = replace(config, covariance_weight=weight), partial(memit_factor, weight=weight)
    problem = _Batch("memit", form, True, requests, covariances, config)
    return _write(model, problem, targets, on_unhealthy, progress)


@checked
def emmet(
    model: Model,
    requests: Sequence[EditRequest],
    *,
    covariances: Mapping[int, KeyCovariance],
    config: EmmetConfig | None = None,
    targets: MemitTargets | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """EMMET (Gupta et al. 2024, arXiv 2401.07453, 2403.14236): each layer answers its share to every key exactly.

    It is ROME's Eq. 2 for several keys. Everything else, arguments included, is as in `memit`.

    Raises:
        EditError: also if the requests' keys depend on each other.
        CovarianceError, ValueError: as `memit`.
    """
    config = EmmetConfig() if config is None else config
    problem = _Batch("emmet", emmet_factor, True, requests, covariances, config)
    return _write(model, problem, targets, on_unhealthy, progress)


@checked
def alphaedit(
    model: Model,
    requests: Sequence[EditRequest],
    *,
    covariances: Mapping[int, KeyCovariance],
    config: AlphaEditConfig | None = None,
    targets: MemitTargets | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """AlphaEdit (Fang et al. 2024, arXiv 2410.02355): writes only where ordinary keys hardly reach.

    This is one batch of it. The keys of earlier batches, which the paper protects as well, are not kept. Everything
    else, arguments included, is as in `memit`.

    Raises:
        CovarianceError: also if no eigenvalue of C is below the threshold. C may be singular.
        EditError, ValueError: as `memit`.
    """
    config = AlphaEditConfig() if config is None else config
    form = partial(alphaedit_factor, threshold=config.null_space_threshold, ridge=config.ridge)
    problem = _Batch("alphaedit", form, False, requests, covariances, config)
    return _write(model, problem, targets, on_unhealthy, progress)


@dataclass(frozen=True)
class _Batch:
    """What is asked of one of the methods."""

    method: str
    form: ClosedForm
    inverts: bool  # the covariance
    requests: Sequence[EditRequest]
    covariances: Mapping[int, KeyCovariance]
    config: BatchConfig


def _write(
    model: Model,
    asked: _Batch,
    targets: MemitTargets | None,
    on_unhealthy: OnUnhealthy,
    progress: bool,
) -> Edit:
    requests, covariances = asked.requests, asked.covariances
    check_requests(requests)
    layers = sorted(covariances) if asked.config.layers is None else list(asked.config.layers)
    _check_layers(model, layers, covariances)
    if targets is None:
        targets = memit_targets(model, requests, layer=layers[-1], config=asked.config, progress=progress)
    else:
        targets.check_use(requests, layers[-1], asked.config)
        targets.check_model(model)
    factors = spread(model, targets, layers, covariances, asked.form, method=asked.method, progress=progress)
    health = EditHealth(
        **update_norms((left @ right, output_matrix(model, layer)) for layer, (left, right) in factors.items()),
        **search_figures(targets.values),
        condition_number=max(covariances[layer].condition_number for layer in layers) if asked.inverts else None,
    )
    used = as_json(replace(asked.config, layers=layers, contexts=targets.contexts))
    edit = Edit.of(model, requests, factors, method=asked.method, config=used, health=health)
    report_problems(health, on_unhealthy, edit=edit)
    return edit


def _check_layers(model: Model, layers: Sequence[int], covariances: Mapping[int, KeyCovariance]) -> None:
    """Raises unless each layer can be edited and has its covariance."""
    if not layers:
        raise CovarianceError("covariances is empty, expected {layer: KeyCovariance}, as collect_covariance gives it.")
    if missing := [layer for layer in layers if layer not in covariances]:
        raise CovarianceError(
            f"There is no covariance of the layers {missing}, only of {sorted(covariances)}. Collect them: "
            f"collect_covariance(model, layers={missing}, texts=...)."
        )
    for layer in layers:
        finite_matrix(model, layer)
        covariances[layer].check(model, layer)
        if norms_mlp_output(model, layer):
            raise ValueError(
                f"{model.cfg.model_name} norms its MLPs' outputs, or scales them, so that what is missing in the "
                "residual stream cannot be written into them in closed form. Use rome."
            )
