"""The options of a causal trace."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from rome_lens.checking import check_whole, checked
from rome_lens.locate.corruption import CORRUPTIONS, Corruption, CorruptionFunction, GaussianNoise
from rome_lens.locate.metrics import METRICS, Metric, MetricName
from rome_lens.locate.own import Recorded, check_comparable, check_takes, name_of, to_record
from rome_lens.locate.runs import Sublayer
from rome_lens.models import Kind, Model
from rome_lens.storage import plain

Method = Literal["exact", "attribution"]
COLUMNS = ("position", "token", "role", "layer", "kind", "window", "method", "indirect_effect")
"""The columns of a trace's frame, besides the metric's own."""


@checked
@dataclass(frozen=True)
class TraceConfig:
    """The options of a causal trace. A trace keeps the config that it was made with.

    Attributes:
        kind: which states are restored: "resid", a block's output; "mlp" or "attn", what a window of MLPs or attentions
            adds to the residual stream; "head", one attention head's output.
        window: number of layers restored together for "mlp" and "attn": layers l - window // 2 to
            l + (window - 1) // 2, as far as they exist. In a trace's config it is 1 for the other kinds.
        samples: number of corrupted runs to average over.
        corruption: how the subject is hidden; by default Gaussian noise of 3 sigma. Takes your own object or function
            as well: see `Corruption` and `CorruptionFunction`. In a trace's config the noise's std is a number.
        metric: what is read from the logits: "prob", the probability of the answer (the product over its tokens);
            "logprob", its logarithm in nats; "logit_diff", the logit of the answer's first token minus that of a wrong
            answer's; "kl", the KL divergence in nats of the next token's distribution from that after the clean prompt
            (0 when all is restored); or a function of your own: see `Metric`.
        wrong_answer: for "logit_diff".
        head: number of the head, for "head".
        positions: rows of the grid to compute; -1 is the prompt's last token, as in Python; None: all.
        layers: columns of the grid to compute; -1 is the last one; None: all.
        severed: sublayers that keep their corrupted outputs while a state is restored (paper figure 3 and
            appendix B.2), which cuts off the state's effect through them.
        severed_positions: positions where they do; None: the restored position, as in the paper.
        method: "exact", or "attribution": a gradient approximation of the same grid (attribution patching, Nanda
            2023; Syed et al. 2023, arXiv 2310.10348), many times cheaper, and labelled wherever it is shown.

    Raises:
        ValueError: an option is out of range, or a function of your own takes other arguments.
        TypeError: an option is of another type.
    """

    kind: Kind = "resid"
    window: int = 10
    samples: int = 10
    corruption: Corruption | CorruptionFunction = field(default_factory=GaussianNoise)
    metric: MetricName | Metric = "prob"
    wrong_answer: str | None = None
    head: int | None = None
    positions: Sequence[int] | None = None
    layers: Sequence[int] | None = None
    severed: Sequence[Sublayer] = ()
    severed_positions: Sequence[int] | None = None
    method: Method = "exact"

    def __post_init__(self) -> None:
        check_whole(window=self.window, samples=self.samples)
        check_whole(least=0, head=self.head)
        for name in ("layers", "positions", "severed", "severed_positions"):
            if (numbers := getattr(self, name)) is None:
                continue
            if name in ("layers", "positions") and not len(numbers):
                raise ValueError(f"{name} is empty, expected one number or more, or None for all.")
            object.__setattr__(self, name, tuple(numbers))
        if self.severed_positions is not None and not self.severed:
            raise ValueError("severed_positions are given, but nothing is severed. Say severed=('mlp',), say.")
        if self.method == "attribution" and self.severed:
            raise ValueError("Severed traces have no attribution. Use method='exact'.")
        if not isinstance(self.corruption, Corruption):
            check_takes("corruption", self.corruption, "model", "fact", "clean", "samples")
        if not isinstance(self.metric, str | Recorded):
            check_takes("metric", self.metric, "logits", "prompt")
            if name_of(self.metric) in (*METRICS, *COLUMNS):
                raise ValueError(
                    f"metric is a function named {name_of(self.metric)!r}, which already means something in a trace's "
                    "frame. Give it another name."
                )

    def check(self, model: Model) -> None:
        """Raises ValueError unless the options fit each other and the model."""
        heads, n_layers = model.cfg.n_heads, model.cfg.n_layers
        if (self.head is not None) != (self.kind == "head") or (self.head or 0) >= heads:
            raise ValueError(
                f"kind is {self.kind!r} and head is {self.head!r}, expected a head from 0 to {heads - 1} with kind "
                "'head', and none with the others."
            )
        counted_from_start("layers", self.layers, n_layers, str(model.cfg.model_name))
        if self.kind in self.severed:
            raise ValueError(
                f"severed is {self.severed!r} for kind {self.kind!r}, expected 'mlp', 'attn' or both, and not what is "
                "restored."
            )

    def at(self, length: int, n_layers: int) -> "TraceConfig":
        """The config for a prompt of so many tokens: positions and layers are counted from the start.

        Raises:
            ValueError: one does not exist.
        """
        held = self.severed_positions and tuple(place + length * (place < 0) for place in self.severed_positions)
        if min(held or (), default=0) < 0:
            raise ValueError(f"The severed_positions {self.severed_positions} begin before the prompt does.")
        return replace(
            self,
            positions=counted_from_start("positions", self.positions, length, "the prompt"),
            layers=counted_from_start("layers", self.layers, n_layers, "the model"),
            severed_positions=held,
        )

    def check_comparable(self) -> None:
        """Raises ValueError for a metric or corruption that cannot be compared with one from an earlier run."""
        check_comparable("metric", self.metric)
        check_comparable("corruption", self.corruption)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain JSON values. A metric or corruption of your own becomes its name and settings."""
        values = {each.name: plain(getattr(self, each.name)) for each in fields(self)}
        metric = self.metric if isinstance(self.metric, str) else to_record(self.metric)
        return values | {"corruption": to_record(self.corruption), "metric": metric}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TraceConfig":
        """The config that `to_dict` wrote. A metric or corruption of your own comes back as its name; it cannot run."""
        metric, corruption = values["metric"], Recorded(**values["corruption"])
        settings = corruption.settings if isinstance(corruption.settings, dict) else {}
        known = CORRUPTIONS.get(settings.get("class", ""))
        made = known(**{name: value for name, value in settings.items() if name != "class"}) if known else corruption
        chosen = metric if isinstance(metric, str) else Recorded(**metric)
        return cls(**{**values, "corruption": made, "metric": chosen})


def counted_from_start(name: str, numbers: Sequence[int] | None, count: int, whose: str) -> tuple[int, ...] | None:
    """Numbers of positions or layers, of which negative ones count from the end: -1 is the last.

    Raises:
        ValueError: one does not exist.
    """
    if numbers is None:
        return None
    if outside := [number for number in numbers if not -count <= number < count]:
        raise ValueError(f"The {name} {outside} do not exist: {whose} has 0 to {count - 1} (or -1 for the last).")
    return tuple(dict.fromkeys(number % count for number in numbers))


def with_options(config: TraceConfig | None, options: Mapping[str, Any]) -> TraceConfig:
    """The config with its fields replaced by the options that are not None."""
    return replace(config or TraceConfig(), **{name: each for name, each in options.items() if each is not None})
