"""The covariances that ship with the package."""

from collections.abc import Mapping
from functools import cache
from importlib import resources

from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.presets.table import nearest_preset
from rome_lens.models import Model

SHIPPED_COVARIANCES = {"smollm2-135m": "smollm2-135m.covariance.safetensors"}
"""File in the package's data folder by model name: models that need no `covariance` argument."""


def shipped_covariance(model: Model) -> KeyCovariance:
    """The covariance that ships with this package, for a model's default edit layer.

    Raises:
        ValueError: there is none for this model.
    """
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
    if given is not None:
        return given
    shipped = shipped_covariance(model)
    return {shipped.layer: shipped}


@cache
def _read_shipped(name: str) -> KeyCovariance:
    with resources.as_file(resources.files("rome_lens") / "data" / "builtin" / name) as path:
        return KeyCovariance.load(path)
