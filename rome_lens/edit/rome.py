"""ROME: one rank-one update that makes the model say a new fact (paper section 3.1, Eq. 2)."""

from dataclasses import replace
from functools import cache
from importlib import resources

from rome_lens.checking import checked
from rome_lens.edit.config import RomeConfig
from rome_lens.edit.covariance import KeyCovariance
from rome_lens.edit.health import EditHealth, OnUnhealthy, report_problems, update_norms
from rome_lens.edit.key import subject_keys
from rome_lens.edit.suggested import find_suggestion
from rome_lens.edit.value import optimise_value, search_figures
from rome_lens.edit.weights import Edit, as_json, finite_matrix
from rome_lens.errors import EditError
from rome_lens.facts import EditRequest
from rome_lens.models import Model, mlp_output

SHIPPED_COVARIANCES = {"smollm2-135m": "smollm2-135m.covariance.safetensors"}
"""Models that `rome` needs no covariance for, by name, and the file in the package's data folder."""


def shipped_covariance(model: Model) -> KeyCovariance:
    """The covariance that comes with this package for a model's default edit layer.

    Raises:
        ValueError: there is none for this model.
    """
    name = SHIPPED_COVARIANCES.get(str(model.cfg.model_name))
    if name is None:
        suggested = find_suggestion(model)
        raise ValueError(
            f"No covariance was given, and none ships for {model.cfg.model_name} (there is one for "
            f"{', '.join(SHIPPED_COVARIANCES)}). Collect one: collect_covariance(model, "
            f"layers=[{'layer' if suggested is None else suggested}], texts=...)."
        )
    return _read_shipped(name)


@cache
def _read_shipped(name: str) -> KeyCovariance:
    with resources.as_file(resources.files("rome_lens") / "data" / name) as path:
        return KeyCovariance.load(path)


@checked
def rome(
    model: Model,
    request: EditRequest,
    *,
    covariance: KeyCovariance | None = None,
    config: RomeConfig | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """Computes, and does not apply, the update after which the model says `request.target` (paper Eq. 2):

    W_hat = W + u rightT with u = C^-1 k* / |C^-1 k*| and right = (v* - W k*) / (k* . u), so that W_hat k* = v*.

    Args:
        model: is run; its weights and their requires_grad stay as they are.
        request: what to write.
        covariance: of the keys of the edited layer; None: the one that ships for this model.
        config: the numbers; None: `RomeConfig()`.
        on_unhealthy: what to do if the edit's `health` has problems: an EditWarning, an EditError, or nothing.
        progress: shows a bar.

    Returns:
        An Edit with one update of rank one, and its health.

    Raises:
        CovarianceError: the covariance is of another layer or model, or singular.
        EditError: a weight or the loss is not finite, k* . u is 0, or the edit is unhealthy and `on_unhealthy` is
            "raise". No weight is changed.
        ValueError: a bad layer, or a prompt that does not fit.
    """
    config = RomeConfig() if config is None else config
    covariance = shipped_covariance(model) if covariance is None else covariance
    layer = covariance.layer if config.layer is None else config.layer
    weight = finite_matrix(model, layer)
    covariance.check(model, layer)
    contexts = config.contexts_for(model)

    keys = subject_keys(model, layer, request, contexts, token=config.token)
    mean_key = keys.mean(0)
    direction = covariance.solve(mean_key)
    left = direction / direction.norm()
    value = optimise_value(model, layer, request, contexts, config, progress=progress)
    key = mean_key if config.consistent else keys[0]
    divisor = key @ left
    right = (value.vector - mlp_output(model, layer, key)) / divisor
    if not (left.isfinite().all() and right.isfinite().all()):
        raise EditError(
            f"The update is not finite (k* . u is {divisor.item():.3g}). No weight was changed. Use other contexts, or "
            "a covariance from more text."
        )
    health = EditHealth(
        **update_norms([(left[:, None] @ right[None], weight)]),
        **search_figures([value]),
        key_share=(divisor / (mean_key @ left)).item(),
        key_dot_u=(divisor / key.norm()).item(),
        condition_number=covariance.condition_number,
    )
    used = as_json(replace(config, layer=layer, contexts=contexts))
    factors = {layer: (left[:, None], right[None])}
    edit = Edit.of(model, [request], factors, method="rome", config=used, health=health)
    report_problems(health, on_unhealthy, edit=edit)
    return edit
