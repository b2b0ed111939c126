"""The options of a causal trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rome_lens.checking import check_whole
from rome_lens.locate.corruption import Corruption
from rome_lens.locate.metrics import MetricName
from rome_lens.locate.trace import ATTRIBUTION
from rome_lens.models import Kind, Model

Method = Literal["exact", "attribution"]


@dataclass(frozen=True)
class TraceOptions:
    """How to trace: the keyword arguments of `causal_trace`, which documents them."""

    kind: Kind = "resid"
    window: int = 10
    samples: int = 10
    corruption: Corruption | None = None
    metric: MetricName = "prob"
    wrong_answer: str | None = None
    head: int | None = None
    positions: Sequence[int] | None = None
    layers: Sequence[int] | None = None
    severed: Sequence[Literal["mlp", "attn"]] = ()
    severed_positions: Sequence[int] | None = None
    method: Method = "exact"
    tokens_per_batch: int | None = None

    def check(self, model: Model) -> None:
        """Raises ValueError unless the options fit together and fit the model."""
        for name, value, choices in (
            ("kind", self.kind, get_args(Kind)),
            ("metric", self.metric, get_args(MetricName)),
            ("method", self.method, get_args(Method)),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}.")
        check_whole(window=self.window, samples=self.samples, tokens_per_batch=self.tokens_per_batch)
        heads, n_layers = model.cfg.n_heads, model.cfg.n_layers
        if (self.head is not None) != (self.kind == "head") or not 0 <= (self.head or 0) < heads:
            raise ValueError(
                f"kind is {self.kind!r} and head is {self.head!r}, expected a head from 0 to {heads - 1} with kind "
                "'head', and none with the others."
            )
        for name, wanted in (("layers", self.layers), ("positions", self.positions)):
            if wanted is not None and not len(wanted):
                raise ValueError(f"{name} is empty, expected one number or more, or None for all.")
        if outside := [layer for layer in self.layers or () if not 0 <= layer < n_layers]:
            raise ValueError(f"The layers {outside} do not exist: {model.cfg.model_name} has 0 to {n_layers - 1}.")
        if not set(self.severed) <= {"mlp", "attn"} or self.kind in self.severed:
            raise ValueError(
                f"severed is {tuple(self.severed)!r} for kind {self.kind!r}, expected 'mlp', 'attn' or both, and not "
                "what is restored."
            )
        if self.severed_positions is not None and not self.severed:
            raise ValueError("severed_positions are given, but nothing is severed. Say severed=('mlp',), say.")
        if self.method == ATTRIBUTION and self.severed:
            raise ValueError("Severed traces have no attribution. Use method='exact'.")
