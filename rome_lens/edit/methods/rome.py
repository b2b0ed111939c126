"""ROME: a rank-one update of an MLP output matrix that writes one fact (paper section 3.1).

Eq. 3 gives the key k* of the subject (`search/key.py`), Eq. 4 the value v* that stands for the new fact
(`search/value.py`), and Eq. 2 the update with which the matrix maps k* to v* (`rome`, below).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rome_lens.checking import check_whole, checked
from rome_lens.edit.artifact.edit import Edit, as_json, finite_matrix
from rome_lens.edit.artifact.health import OnUnhealthy
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import shipped_covariance
from rome_lens.edit.methods.closed_forms import emmet_factor, project_out, with_context_differences
from rome_lens.edit.methods.near import auto_prompts
from rome_lens.edit.methods.preserve import Preserve, preserve_figures, preserved_prompts
from rome_lens.edit.methods.requests import Requests, only_request
from rome_lens.edit.presets.table import preset_to_use
from rome_lens.edit.search.key import subject_keys
from rome_lens.edit.search.settings import SearchConfig
from rome_lens.edit.search.value import Value, optimise_value, search_figures
from rome_lens.errors import EditError
from rome_lens.models import Model, mlp_output


@checked
@dataclass(frozen=True, kw_only=True)
class RomeConfig(SearchConfig):
    """Hyper-parameters of ROME; SearchConfig has the other attributes.

    The default is five sampled contexts and 25 steps, as in the authors' later code (kmeng01/memit), not twenty each.

    Attributes:
        layer: block to edit; None: the layer of the covariance.
        consistent: True: one k*, the mean over contexts, on both sides of Eq. 2 (r-ROME, Gupta et al. 2024, arXiv
            2403.07175). False: the mean key on the left and the bare prompt's key on the right, as in the authors'
            released code, whose edits can blow up if the two differ.
        constrain_bare_prompt: add at the bare prompt's key as much as at k*. The mean over contexts can be unlike it,
            above all where the prompt begins with the subject, and then the bare prompt would hardly be edited.
    """

    layer: int | None = None
    steps: int = 25
    consistent: bool = True
    constrain_bare_prompt: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(least=0, layer=self.layer)

    @classmethod
    def reference(cls, layer: int | None = None, *, contexts: Sequence[str] | None = None) -> "RomeConfig":
        """The authors' released code, step for step (kmeng01/rome@0874014, rome/)."""
        return cls(
            layer=layer,
            token="subject_last",
            steps=20,
            contexts=contexts,
            context_lengths=((5, 10), (10, 10)),
            norm_over_contexts=False,
            consistent=False,
            constrain_bare_prompt=False,
        )

    @classmethod
    def for_model(cls, model: Model) -> "RomeConfig":
        """The numbers known for a model of this family and shape; `find_preset` tells where they come from.

        Raises:
            ValueError: none are known for its family.
        """
        preset = preset_to_use(model, "rome")
        return cls(layer=preset.layers[-1], **preset.numbers)


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
    """Computes, without applying it, the rank-one update that makes the model predict `request.target` (paper Eq. 2):

    W_hat = W + u right^T with u = C^-1 k* / |C^-1 k*| and right = (v* - W k*) / (k* . u), so that W_hat k* = v*.

    Args:
        model: Model to run; its weights and `requires_grad` flags are left unchanged.
        request: What to write: an EditRequest, or a list of one.
        covariance: Covariance of the keys of the edited layer; None: the one that ships for this model.
        preserve: Prompts whose answers stay exactly as they are, up to rounding: texts, or Facts, EditRequests or
            records, whose prompt (for records, the request's) counts. Among the updates with W_hat k* = v* that add
            nothing at any of their tokens, and as much to the key of the bare prompt as to k*, this is then the one
            that is least in the norm of C. "auto": the prompts of `near_subjects`. None: Eq. 2 as it stands.
        on_unhealthy: What to do if the edit's `health` has problems: EditWarning, EditError, or nothing.

    Returns:
        An Edit with one update of rank one, and its health.

    Raises:
        CovarianceError: the covariance is of another layer or model, or singular.
        EditError: a weight or the loss is not finite, k* . u is 0, or the edit is unhealthy and `on_unhealthy` is
            "raise"; or what is to be preserved is what is to be changed, or does not fit into the layer's rank. No
            weight is changed.
        ValueError: several requests, an invalid layer, or a prompt that exceeds the model's context.
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
    """`rome` with another search for v*: `find_value` gets the arguments of `optimise_value`."""
    request = only_request(request, "rome")
    config = RomeConfig() if config is None else config
    covariance = shipped_covariance(model) if covariance is None else covariance
    layer = covariance.layer if config.layer is None else config.layer
    finite_matrix(model, layer)
    covariance.check(model, layer)
    if preserve == "auto":
        preserve = auto_prompts(model, [request], {layer: covariance}, emmet_factor, config.token)
    preserved = preserved_prompts(model, preserve, [request], [layer], token=config.token)
    contexts = config.contexts_for(model)

    keys, kept = subject_keys(model, layer, request, contexts, token=config.token), preserved.keys(model, layer)
    mean_key = keys.mean(0)  # k* (Eq. 3)
    alike = None
    if config.constrain_bare_prompt:
        kept, alike = (with_context_differences(each, mean_key[None], keys[:1]) for each in (kept, None))
    direction = project_out(mean_key[None], covariance.solve, kept)[0][0].to(mean_key)
    left = direction / direction.norm()
    value = find_value(model, layer, request, contexts, config)  # v* (Eq. 4)
    key = mean_key if config.consistent and not config.constrain_bare_prompt else keys[0]
    divisor = key @ left
    right = (value.vector - mlp_output(model, layer, key)) / divisor  # Lambda of Eq. 2, for left = u
    if not (left.isfinite().all() and right.isfinite().all()):
        raise EditError(
            f"The update is not finite (k* . u is {divisor.item():.3g}). No weight was changed. Use other contexts, or "
            "a covariance from more text."
        )
    factors = {layer: (left[:, None], right[None])}
    cost: dict[str, Any] = {}
    if preserved.places and kept is not None:
        plain = project_out(mean_key[None], covariance.solve, alike)[0][0].to(mean_key)
        without = plain[:, None] / (key @ plain), right[None] * divisor
        cost = preserve_figures(factors[layer], without, key[None], kept)
    used = as_json(replace(config, layer=layer, contexts=contexts)) | preserved.as_json()
    return Edit.of(
        model,
        [request],
        factors,
        method="rome",
        config=used,
        on_unhealthy=on_unhealthy,
        **search_figures([value]),
        key_share=((keys[0] @ left) / (mean_key @ left)).item(),
        key_dot_u=(divisor / key.norm()).item(),
        condition_number=covariance.condition_number,
        **cost,
    )
