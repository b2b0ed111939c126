"""The edits of one model that the explorer computes, applies and undoes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from rome_lens.data.records import EditRequest
from rome_lens.edit.artifact.applied import AppliedEdit
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import covariances_for
from rome_lens.edit.methods.near import near_subjects
from rome_lens.edit.methods.rome import RomeConfig, rome_with
from rome_lens.edit.search.value import Value, optimise_value
from rome_lens.evaluate.side_effects.forecast import forecast_bleed_over, strongest_bleed_over
from rome_lens.models import Model


class Edits:
    """ROME's edits on top of each other.

    Attributes:
        applied: those that are in the model, in the order in which they were applied.
    """

    def __init__(self, model: Model, config: RomeConfig, covariances: Mapping[int, KeyCovariance] | None):
        self._model, self._config, self._covariances = model, config, covariances
        self._searched: dict[tuple[EditRequest, int], Value] = {}  # in the model as it is now
        self._handles: list[AppliedEdit] = []
        self.applied: list[Edit] = []

    @property
    def layers(self) -> list[int]:
        """The layers to choose from, the config's first; none if no covariance ships for this model."""
        try:
            layers = sorted(covariances_for(self._model, self._covariances))
        except ValueError:  # `compute` says so, and tracing does without
            return []
        if self._config.layer is not None:
            if self._config.layer not in layers:
                raise ValueError(
                    f"config.layer is {self._config.layer}, and there are covariances of {layers}. Give the one of "
                    "that layer: covariances={layer: covariance}."
                )
            layers.sort(key=lambda layer: layer != self._config.layer)
        return layers

    def compute(self, request: EditRequest, layer: int | None, protected: Sequence[str]) -> Edit:
        """`rome`, which searches for v* once in the model as it is, whatever is protected. Raises as `rome`."""
        covariance = self._covariance(layer)

        def find_value(*given: Any) -> Value:
            if (request, covariance.layer) not in self._searched:
                self._searched[request, covariance.layer] = optimise_value(*given, progress=False)
            return self._searched[request, covariance.layer]

        config = replace(self._config, layer=covariance.layer)
        return rome_with(find_value, self._model, request, covariance, config, protected, "ignore")

    def forecast(self, edit: Edit, watched: Sequence[str]) -> pd.DataFrame:
        """As `strongest_bleed_over`, the largest first: at prompts that are watched, and those of `near_subjects`."""
        covariance = self._covariance(edit.updates[0].layer)
        near = near_subjects(self._model, edit.requests[0], covariances={covariance.layer: covariance}, most=12)
        prompts = list(dict.fromkeys([*watched, *near["prompt"]]))
        if not prompts:
            return pd.DataFrame(columns=["prompt", "layer", "position", "token", "share", "size"])
        found = strongest_bleed_over(forecast_bleed_over(self._model, edit, prompts))
        return found.sort_values("size", ascending=False, ignore_index=True)

    def apply(self, edit: Edit) -> None:
        """Writes an edit into the model."""
        self._handles.append(edit.apply(self._model))
        self.applied.append(edit)
        self._searched.clear()

    def undo(self, number: int) -> None:
        """Takes the edit of this number out of the model. Raises ValueError if there is none."""
        if not 0 <= number < len(self.applied):
            raise ValueError(f"There is no edit number {number}: {len(self.applied)} are applied.")
        self._handles[number].revert()
        del self._handles[number], self.applied[number]
        self._searched.clear()

    def _covariance(self, layer: int | None) -> KeyCovariance:
        covariances = covariances_for(self._model, self._covariances)
        return covariances[min(covariances) if layer is None else layer]
