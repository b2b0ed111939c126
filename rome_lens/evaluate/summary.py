"""One row for each method and protocol, as in the paper's tables, or the protocols side by side."""

import numpy as np
import pandas as pd

from rome_lens.checking import check_seed, checked
from rome_lens.data.cases import RIPPLE_AXES
from rome_lens.intervals import bootstrap_interval, proportion_interval

SUCCESSES = ("ES", "PS", "NS")
METRICS = ("ES", "EM", "PS", "PM", "NS", "NM")
PROPORTIONS = frozenset(
    {*SUCCESSES, "NS+", "efficacy", "paraphrase", "portability", "locality", "specificity", "unchanged", "edit_success"}
    | {"multi_hop", "edit_wise", "instance_wise", "ripple", "executed", *RIPPLE_AXES}
)
"""Scores that are right or wrong, or a record's share of these: of prompts, questions, tokens."""
_KINDS = ("portability_", "locality_", "EOS_", "AMS_", "robustness_")  # proportions whose names end in a kind
_OVERLAPS = ("_rouge1", "_rouge2", "_rougeL", "_bleu", "_bleu_words", "_cosine")  # none, whatever they begin with


@checked
def summarize(frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Means over records with 95 % intervals, and S, the harmonic mean of mean ES, PS and NS (paper Table 4).

    Intervals are by resampling records: the percentile bootstrap; for proportions (ES, PS, NS, efficacy, exact match,
    ...) and S, Jeffreys' interval, extended to shares, which has a width where all records succeed: docs/evaluate.md
    says which is which.

    Scores of one protocol are never averaged with those of another. A metric's mean is over the records that have it.
    An edit that could not be computed has no scores: the means are over the others, and `failed` says how many it were.

    Args:
        frame: what `score_edits` gives, with whatever scores (several may be put together with pandas.concat).
        seed: of the resampling.

    Returns:
        A row for each method and protocol, in the frame's order: method, protocol (if the frame has it), n (records
        with scores), failed (records without), S and each metric, with columns _low, _high; the metrics of
        `score_record` first, others in the frame's order.

    Raises:
        ValueError: the frame lacks a column, has no rows, holds a record's metric twice, or has a metric by the name of
            a column of the summary.
    """
    check_seed(seed)
    _check_scores(frame, ["case_id", "method", "metric", "value"])
    group = ["method", "protocol"] if "protocol" in frame else ["method"]
    if taken := sorted({"method", "protocol", "n", "failed"} & set(frame["metric"])):
        raise ValueError(f"The metrics {', '.join(taken)} have the names of columns of the summary. Rename them.")
    shares = _proportions(frame)
    rows = []
    for names, part in frame.groupby(group, sort=False):
        failed = part["error"].fillna("") != "" if "error" in part else pd.Series(False, part.index)
        scored = part[~failed]
        wide = scored.pivot(index="case_id", columns="metric", values="value")
        row: dict[str, object] = {**dict(zip(group, names, strict=True)), "n": len(wide), "failed": int(failed.sum())}
        rows.append(row)
        if scored.empty:
            continue
        known = [metric for metric in METRICS if metric in wide]
        metrics = [*known, *(metric for metric in scored["metric"].unique() if metric not in known)]
        values = wide[metrics].to_numpy(dtype=float)
        if set(SUCCESSES) <= set(metrics):
            places = [metrics.index(metric) for metric in SUCCESSES]
            successes = values[:, places]
            low, high = proportion_interval(successes, _harmonic_mean, seed=seed)
            s = _harmonic_mean(np.nanmean(successes, axis=0)[None])[0, 0]
            row |= {"S": s, "S_low": low[0], "S_high": high[0]}
        ends = {interval: interval(values, seed=seed) for interval in (bootstrap_interval, proportion_interval)}
        for i, metric in enumerate(metrics):
            low, high = ends[proportion_interval if metric in shares else bootstrap_interval]
            row |= {metric: np.nanmean(values[:, i]), f"{metric}_low": low[i], f"{metric}_high": high[i]}
    return pd.DataFrame(rows)


SAME = {"ES": "efficacy", "PS": "paraphrase", "NS": "locality"}
"""What the paper's successes are called under other protocols."""


@checked
def by_protocol(frame: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """The same edits under each protocol, side by side, with 95 % intervals over records, as in `summarize`.

    A method's metric is averaged over the records that have it under every protocol that knows it, so that the numbers
    of a row are those of the same edits. ES, PS and NS stand in the rows efficacy, paraphrase and locality.

    Args:
        frame: What `score_edits` gives with several protocols, or more of them put together with pandas.concat.
        seed: Of the resampling.

    Returns:
        A row for each method and metric: method, metric, n (records), then for each protocol its mean, NAME_low and
        NAME_high; NaN where a protocol does not know the metric. Sorted as in the frame.

    Raises:
        ValueError: The frame lacks a column, has no rows, or holds a record's metric twice under a protocol.
    """
    check_seed(seed)
    _check_scores(frame, ["case_id", "method", "protocol", "metric", "value"])
    scored = frame[frame["metric"] != ""].assign(metric=lambda rows: rows["metric"].replace(SAME))
    shares = _proportions(scored)
    rows = []
    for (method, metric), part in scored.groupby(["method", "metric"], sort=False):
        wide = part.pivot(index="case_id", columns="protocol", values="value").dropna()
        row: dict[str, object] = {"method": method, "metric": metric, "n": len(wide)}
        if len(wide):
            interval = proportion_interval if metric in shares else bootstrap_interval
            low, high = interval(wide.to_numpy(dtype=float), seed=seed)
            for i, name in enumerate(wide):
                row |= {str(name): wide[name].mean(), f"{name}_low": low[i], f"{name}_high": high[i]}
        rows.append(row)
    names = [f"{name}{end}" for name in frame["protocol"].unique() for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["method", "metric", "n", *names])


def _proportions(frame: pd.DataFrame) -> set[str]:
    """The metrics of a frame that are 0, 1 or a share on every record."""
    found = set()
    for metric, values in frame.groupby("metric")["value"]:
        name, seen = str(metric), set(values.dropna())
        known = name in PROPORTIONS or (name.startswith(_KINDS) and not name.endswith(_OVERLAPS))
        if seen == {0, 1} or (known and all(0 <= v <= 1 for v in seen)):
            found.add(name)
    return found


def _check_scores(frame: pd.DataFrame, expected: list[str]) -> None:
    """Raises ValueError unless a frame holds scores, each once."""
    if missing := [column for column in expected if column not in frame]:
        raise ValueError(f"The frame lacks the columns {missing}, expected {expected}: give what score_edits returns.")
    if frame.empty:
        raise ValueError("The frame has no rows: give what score_edits returns for one record or more.")
    each = [name for name in ("case_id", "method", "protocol", "metric") if name in frame]
    if frame.duplicated(each).any():
        raise ValueError("The frame holds a record's metric more than once for a method. Drop the duplicates.")


def _harmonic_mean(means: np.ndarray) -> np.ndarray:
    """Of each row, as a column; 0 where one of the numbers is."""
    with np.errstate(divide="ignore"):
        return means.shape[1] / (1 / means).sum(axis=1, keepdims=True)
