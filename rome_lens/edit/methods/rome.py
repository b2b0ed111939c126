"""ROME: one rank-one update that makes the model say a new fact (paper section 3.1, Eq. 2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rome_lens.checking import check_whole, checked
from rome_lens.edit.artifact.edit import Edit, as_json, finite_matrix
from rome_lens.edit.artifact.health import EditHealth, OnUnhealthy, report_problems, update_norms
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import shipped_covariance
from rome_lens.edit.methods.closed_forms import emmet_factor, sparing
from rome_lens.edit.methods.near import auto_prompts
from rome_lens.edit.methods.preserve import Preserve, preserve_figures, preserved_prompts
from rome_lens.edit.methods.requests import Requests, only_request
from rome_lens.edit.search.key import subject_keys
from rome_lens.edit.search.settings import SearchConfig
from rome_lens.edit.search.value import Value, optimise_value, search_figures
from rome_lens.errors import EditError
from rome_lens.models import Model, mlp_output


@checked
@dataclass(frozen=True, kw_only=True)
class RomeConfig(SearchConfig):
    """The numbers of ROME. The other attributes are those of SearchConfig.

    Five contexts, as in the authors' later code (kmeng01/memit), instead of twenty: k* is their mean, in which the bare
    prompt then weighs enough to be changed too when its key is unlike the others, as keys of a text's first tokens are.

    Attributes:
        layer: the block to edit; None: the layer of the covariance.
        consistent: one k*, the mean over the contexts, on both sides of Eq. 2 (r-ROME, Gupta et al. 2024, arXiv
            2403.07175). False: the mean key on the left and the bare prompt's key on the right, as the authors'
            released code has it; its edits can blow up when the two differ.
    """

    layer: int | None = None
    consistent: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(least=0, layer=self.layer)

    @classmethod
    def reference(cls, layer: int | None = None, *, contexts: Sequence[str] | None = None) -> "RomeConfig":
        """Step for step what the authors' released code does (kmeng01/rome@0874014, rome/)."""
        return cls(layer=layer, contexts=contexts, context_lengths=((5, 10), (10, 10)), consistent=False)


@checked
def rome(
    model: Model,
    request: Requests,
    *,
    covariance: KeyCovariance | None = None,
    config: RomeConfig | None = None,
    preserve: Preserve = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """Computes, and does not apply, the update after which the model says `request.target` (paper Eq. 2):

    W_hat = W + u rightT with u = C^-1 k* / |C^-1 k*| and right = (v* - W k*) / (k* . u), so that W_hat k* = v*.

    Args:
        model: is run; its weights and their requires_grad stay as they are.
        request: What to write: an EditRequest, or a list of one.
        covariance: of the keys of the edited layer; None: the one that ships for this model.
        config: the numbers; None: `RomeConfig()`.
        preserve: prompts whose answers stay exactly as they are (to rounding): texts, or Facts, EditRequests or
            records, of which the request's prompt counts. Of all updates with W_hat k* = v* that add nothing at any
            token of theirs, it is then the least in the norm of C. "auto": those of `near_subjects`. None: Eq. 2 as it
            stands.
        on_unhealthy: what to do if the edit's `health` has problems: an EditWarning, an EditError, or nothing.
        progress: shows a bar.

    Returns:
        An Edit with one update of rank one, and its health.

    Raises:
        CovarianceError: the covariance is of another layer or model, or singular.
        EditError: a weight or the loss is not finite, k* . u is 0, or the edit is unhealthy and `on_unhealthy` is
            "raise"; or what is to be preserved is what is to be changed, or is more than the layer has room for. No
            weight is changed.
        ValueError: several requests, a bad layer, or a prompt that does not fit.
    """

    def find_value(*given: Any) -> Value:
        return optimise_value(*given, progress=progress)

    return rome_with(find_value, model, request, covariance, config, preserve, on_unhealthy)


def rome_with(
    find_value: Callable[..., Value],
    model: Model,
    request: Requests,
    covariance: KeyCovariance | None = None,
    config: RomeConfig | None = None,
    preserve: Preserve = None,
    on_unhealthy: OnUnhealthy = "warn",
) -> Edit:
    """`rome` with another way to find v*: `find_value` is given what `optimise_value` is."""
    request = only_request(request, "rome")
    config = RomeConfig() if config is None else config
    covariance = shipped_covariance(model) if covariance is None else covariance
    layer = covariance.layer if config.layer is None else config.layer
    weight = finite_matrix(model, layer)
    covariance.check(model, layer)
    if preserve == "auto":
        preserve = auto_prompts(model, [request], {layer: covariance}, emmet_factor, config.token)
    preserved = preserved_prompts(model, preserve, [request], [layer], token=config.token)
    contexts = config.contexts_for(model)

    keys, kept = subject_keys(model, layer, request, contexts, token=config.token), preserved.keys(model, layer)
    mean_key = keys.mean(0)
    direction = sparing(mean_key[None], covariance.solve, kept)[0].to(mean_key)
    left = direction / direction.norm()
    value = find_value(model, layer, request, contexts, config)
    key = mean_key if config.consistent else keys[0]
    divisor = key @ left
    right = (value.vector - mlp_output(model, layer, key)) / divisor
    if not (left.isfinite().all() and right.isfinite().all()):
        raise EditError(
            f"The update is not finite (k* . u is {divisor.item():.3g}). No weight was changed. Use other contexts, or "
            "a covariance from more text."
        )
    cost = {}
    if kept is not None:
        plain = covariance.solve(mean_key)
        without = plain[:, None] / (key @ plain), right[None] * divisor
        cost = preserve_figures((left[:, None], right[None]), without, key[None], keys[:1], kept)
    health = EditHealth(
        **update_norms([(left[:, None] @ right[None], weight)]),
        **search_figures([value]),
        key_share=(divisor / (mean_key @ left)).item(),
        key_dot_u=(divisor / key.norm()).item(),
        condition_number=covariance.condition_number,
        **cost,
    )
    used = as_json(replace(config, layer=layer, contexts=contexts)) | preserved.as_json()
    factors = {layer: (left[:, None], right[None])}
    edit = Edit.of(model, [request], factors, method="rome", config=used, health=health)
    report_problems(health, on_unhealthy, edit=edit)
    return edit
