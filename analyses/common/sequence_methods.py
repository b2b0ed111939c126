"""The methods that sequences compare, by name: those of `methods`, and variants that keep a sequence stable."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import rome_lens as rl
from rome_lens.evaluate.measuring import Method
from rome_lens.models import Model

from .methods import BATCH, CHOICES, PRESETS, QUIET, batch_config, chosen_methods, shortened
from .options import kept_covariances, rome_covariance

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rome": ("rome", {}),
    "rome-reference": ("rome-reference", {}),
    "rome-on-top": ("rome", {"steps_on_top": 3}),
    "rome-anchored": ("rome", {"anchor_norm": None}),
    "memit": ("memit", {}),
    "memit-keys": ("memit", {"earlier_keys": True}),
    "memit-keys-on-top": ("memit", {"earlier_keys": True, "steps_on_top": 3}),
    "memit-frobenius": ("memit", {"frobenius_weight": 10.0}),
    "emmet": ("emmet", {}),
    "alphaedit": ("alphaedit", {}),
    "alphaedit-alone": ("alphaedit", {"earlier_keys": False}),
    "alphaedit-on-top": ("alphaedit", {"steps_on_top": 3}),
    "alphaedit-anchored": ("alphaedit", {"anchor_norm": None}),
}
"""A method, and the numbers in which it differs; `anchor_norm` is measured on pilot records."""
SEQUENCE_CHOICES = tuple(dict.fromkeys((*CHOICES, *VARIANTS, "ultraedit", "anyedit")))


def sequence_methods(model: Model, options: argparse.Namespace, pilot: Sequence[rl.EditRequest]) -> dict[str, Method]:
    """The methods that the options name. Contexts are sampled once, from the unedited model."""
    return {name: _method(name, model, options, pilot) for name in options.methods}


def _method(name: str, model: Model, options: argparse.Namespace, pilot: Sequence[rl.EditRequest]) -> Method:
    if name == "ultraedit":
        rates = rl.edit.UltraEditConfig(learning_rate=options.learning_rate)
        return partial(rl.edit.ultraedit, config=rates, **QUIET)
    if name == "anyedit":
        asked = {"steps": options.steps, "covariance_weight": options.covariance_weight}
        asked = {name: value for name, value in asked.items() if value is not None}
        windows = rl.edit.AnyEditConfig(layers=options.layers, **asked)
        covariances = kept_covariances(model, options.layers, options)
        return partial(rl.edit.anyedit, config=windows, covariances=covariances, **QUIET)
    if name not in VARIANTS:
        return chosen_methods(model, argparse.Namespace(**vars(options) | {"methods": [name]}))[name]
    base, numbers = VARIANTS[name]
    edit: Callable[..., rl.Edit]
    given: dict[str, Any]
    if base in PRESETS:
        covariance = rome_covariance(model, options)
        edit, config, given = rl.rome, PRESETS[base](), {"covariance": covariance}
        layer = covariance.layer
    else:
        edit, config = BATCH[base][0], batch_config(base, options)
        given = {"covariances": kept_covariances(model, options.layers, options)}
        layer = max(options.layers)
    config = replace(shortened(model, options, config), **numbers)
    if "anchor_norm" in numbers:
        config = replace(config, anchor_norm=rl.edit.anchor_norm(model, pilot, layer=layer, config=config))
    return partial(edit, config=config, **given, **QUIET)
