"""One row for each method, as in the paper's tables."""

import numpy as np
import pandas as pd

from rome_lens.checking import check_seed, checked
from rome_lens.intervals import bootstrap_interval

SUCCESSES = ("ES", "PS", "NS")
METRICS = ("ES", "EM", "PS", "PM", "NS", "NM")


@checked
def summarize(frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Means over records with 95 % bootstrap intervals, and S, the harmonic mean of mean ES, PS and NS (paper Table 4).

    A metric's mean is over the records that have it. An edit that could not be computed has no scores: the means are
    over the others, and `failed` says how many it were.

    Args:
        frame: what `score_edits` gives, with whatever scores (several may be put together with pandas.concat).
        seed: of the bootstrap.

    Returns:
        A row for each method, in the frame's order: method, n (records with scores), failed (records without), S and
        each metric, with columns _low, _high; the metrics of `score_record` first, others in the frame's order.

    Raises:
        ValueError: the frame lacks a column, has no rows, or holds a record's metric twice.
    """
    check_seed(seed)
    expected = ["case_id", "method", "metric", "value"]
    if missing := [column for column in expected if column not in frame]:
        raise ValueError(f"The frame lacks the columns {missing}, expected {expected}: give what score_edits returns.")
    if frame.empty:
        raise ValueError("The frame has no rows: give what score_edits returns for one record or more.")
    if frame.duplicated(["case_id", "method", "metric"]).any():
        raise ValueError("The frame holds a record's metric more than once for a method. Drop the duplicates.")
    rows = []
    for method, part in frame.groupby("method", sort=False):
        failed = part["error"].fillna("") != "" if "error" in part else pd.Series(False, part.index)
        scored = part[~failed]
        wide = scored.pivot(index="case_id", columns="metric", values="value")
        row: dict[str, object] = {"method": method, "n": len(wide), "failed": int(failed.sum())}
        rows.append(row)
        if scored.empty:
            continue
        known = [metric for metric in METRICS if metric in wide]
        metrics = [*known, *(metric for metric in scored["metric"].unique() if metric not in known)]
        values = wide[metrics].to_numpy(dtype=float)
        if set(SUCCESSES) <= set(metrics):
            places = [metrics.index(metric) for metric in SUCCESSES]
            successes = values[:, places]
            low, high = bootstrap_interval(successes, _harmonic_mean, seed=seed)
            s = _harmonic_mean(np.nanmean(successes, axis=0)[None])[0, 0]
            row |= {"S": s, "S_low": low[0], "S_high": high[0]}
        low, high = bootstrap_interval(values, seed=seed)
        for i, metric in enumerate(metrics):
            row |= {metric: np.nanmean(values[:, i]), f"{metric}_low": low[i], f"{metric}_high": high[i]}
    return pd.DataFrame(rows)


def _harmonic_mean(means: np.ndarray) -> np.ndarray:
    """Of each row, as a column; 0 where one of the numbers is."""
    with np.errstate(divide="ignore"):
        return means.shape[1] / (1 / means).sum(axis=1, keepdims=True)
