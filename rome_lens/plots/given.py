"""What figures are given: a tidy frame, or the result that it comes from."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import pandas as pd

from rome_lens.plots.style import METRIC_NAMES, plain

_OTHERS = ("position", "token", "role", "layer", "head", "kind", "window", "method", "indirect_effect")


@runtime_checkable
class Framed(Protocol):
    """A result of tracing one fact: a `CausalTrace` or a `HeadMap`."""

    @property
    def answer(self) -> str:
        """What the metric is of."""

    @property
    def clean(self) -> float:
        """The metric after the clean prompt."""

    def to_frame(self) -> pd.DataFrame:
        """Its cells."""


Several: TypeAlias = Mapping[str, Framed] | Sequence[Framed]


def frame_of(given: pd.DataFrame | Framed | Several) -> pd.DataFrame:
    """The tidy frame of a result, or of several put together."""
    if isinstance(given, pd.DataFrame):
        return given
    if isinstance(given, Framed):
        return given.to_frame()
    return pd.concat([each.to_frame() for each in _listed(given)])


def told(
    given: pd.DataFrame | Framed | Several, answer: str | None, clean: float | None
) -> tuple[str | None, float | None]:
    """The answer and the clean value, of the first result where they are None; a frame does not tell them."""
    if isinstance(given, pd.DataFrame):
        return answer, clean
    one = given if isinstance(given, Framed) else _listed(given)[0]
    return one.answer if answer is None else answer, one.clean if clean is None else clean


def metric_of(frame: pd.DataFrame) -> str:
    """The column that holds the metric: one of the house, or else the first that is no other."""
    own = [str(name) for name in frame if name not in _OTHERS]
    metric = next((name for name in (*METRIC_NAMES, *own) if name in frame), None)
    if metric is None:
        raise ValueError(f"The frame lacks a column of {', '.join(METRIC_NAMES)}. Give what to_frame() returns.")
    return metric


def metric_name(metric: str, answer: str | None) -> str:
    """A metric as a reader knows it: "p(Paris)"."""
    return METRIC_NAMES.get(metric, "{1}").format(plain("answer" if answer is None else answer), plain(metric))


def ends(frame: pd.DataFrame, answer: str | None, clean: float | None) -> str:
    """What the metric is without a restored state: "p(Paris): clean 0.82, corrupted 0.031"; "" if that is not known."""
    metric = metric_of(frame)
    corrupted = (frame[metric] - frame["indirect_effect"]).iloc[0]
    return "" if clean is None else f"{metric_name(metric, answer)}: clean {clean:.3g}, corrupted {corrupted:.3g}"


def _listed(given: Several) -> list[Framed]:
    """The results; raises ValueError if there are none."""
    results = list(given.values() if isinstance(given, Mapping) else given)
    if not results:
        raise ValueError("There are no traces, expected one or more. Give what trace_kinds() returns.")
    return results
