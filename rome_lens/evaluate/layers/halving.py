"""A sweep that spends its edits on the better layers: half of them leave after each round."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path

import pandas as pd

from rome_lens.data.records import EditRecord
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.methods.rome import RomeConfig, rome
from rome_lens.evaluate.measuring import BASE
from rome_lens.evaluate.scoring import score_edits
from rome_lens.evaluate.summary import summarize
from rome_lens.models import Model

_ROUNDS = 3


def rounds(candidates: int, records: int) -> list[tuple[int, int, int]]:
    """For each round: how many layers are in it, on how many of the first records, and how many of these are new.

    All layers on a quarter of the records, the better half of them on half, the better half of these on all.
    """
    found: list[tuple[int, int, int]] = []
    done = 0
    for left in reversed(range(_ROUNDS)):
        seen = records if left == 0 else max(1, records >> left)
        found.append((candidates, seen, seen - done))
        candidates, done = ceil(candidates / 2), seen
    return found


def sweep_layers(
    model: Model,
    records: Sequence[EditRecord],
    covariances: Mapping[int, KeyCovariance],
    config: RomeConfig,
    *,
    out: Path,
    progress: bool,
) -> pd.DataFrame:
    """Edits each record alone at the layers of the covariances, worse layers at fewer records.

    Returns:
        What `summarize` gives, with a column `layer`, a row for each, the best of those that were tried on all records
        first. The best has the highest S; among equals, the largest mean margin of EM, PM and NM.
    """
    methods: dict[int, Callable] = {
        layer: partial(rome, covariance=covariance, config=config, on_unhealthy="ignore", progress=False)
        for layer, covariance in covariances.items()
    }
    ranked, tables = list(methods), pd.DataFrame()
    for layers, seen, _ in rounds(len(methods), len(records)):
        left = {f"layer {layer}": methods[layer] for layer in ranked[:layers]}
        scores = score_edits(model, records[:seen], left, out=out, progress=progress)
        summary = summarize(scores[scores["method"] != BASE])
        summary["layer"] = summary["method"].str.removeprefix("layer ").astype(int)
        summary = summary.iloc[_order(summary)]
        ranked = list(summary["layer"])
        tables = pd.concat([summary, tables]).drop_duplicates("layer")
    return tables.reset_index(drop=True)


def _order(summary: pd.DataFrame) -> list[int]:
    """The places of the rows, the best first. A layer all of whose edits failed comes last."""
    values = summary.reindex(columns=["S", "EM", "PM", "NM"]).fillna(-1.0)
    keys = list(zip(values["S"], values[["EM", "PM", "NM"]].mean(axis=1), strict=True))
    return sorted(range(len(keys)), key=lambda place: keys[place], reverse=True)
