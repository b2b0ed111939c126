"""The covariances that ship with the package."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

from rome_lens.checking import checked
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.presets.table import nearest_preset
from rome_lens.models import Model, output_matrix

SHIPPED_COVARIANCES = {"smollm2-135m": "smollm2-135m.covariance.safetensors"}
"""File in the package's data folder by model name: models that need no `covariance` argument."""


@checked
def builtin_covariances(model: Model, layers: Sequence[int] | None = None) -> dict[int, KeyCovariance]:
    """The covariances that ship with the package for a model, by layer, as `memit` and other batch methods take them.

    SmolLM2-135M has that of layer 4, the layer of its preset. Without `covariances` the methods use the same.

    Args:
        model: Says which.
        layers: The layers that are needed; None: all that ship.

    Raises:
        ValueError: none ships for this model, or for one of the layers, and how to collect it.
    """
    shipped = shipped_covariance(model)
    if missing := [layer for layer in layers or () if layer != shipped.layer]:
        for layer in missing:
            output_matrix(model, layer)
        raise ValueError(
            f"No covariance ships for the layers {missing} of {model.cfg.model_name}, only that of layer "
            f"{shipped.layer}. Collect all of them in one pass: collect_covariance(model, layers={list(layers or ())}, "
            "texts=...)."
        )
    return {shipped.layer: shipped}


def shipped_covariance(model: Model) -> KeyCovariance:
    """The covariance that ships with this package, for a model's default edit layer."""
    name = SHIPPED_COVARIANCES.get(str(model.cfg.model_name))
    if name is None:
        preset = nearest_preset(model, "rome")
        raise ValueError(
            f"No covariances were given (None), and none ships for {model.cfg.model_name} (there is one for "
            f"{', '.join(SHIPPED_COVARIANCES)}). Collect one: collect_covariance(model, "
            f"layers=[{'layer' if preset is None else preset.layers[-1]}], texts=...)."
        )
    return _read_shipped(name)


def covariances_for(model: Model, given: Mapping[int, KeyCovariance] | None) -> Mapping[int, KeyCovariance]:
    """The given covariances by layer; None: the one that ships. Raises as `shipped_covariance`."""
    return builtin_covariances(model) if given is None else given


@cache
def _read_shipped(name: str) -> KeyCovariance:
    with resources.as_file(resources.files("rome_lens") / "data" / "builtin" / name) as path:
        return KeyCovariance.load(path)
