"""The result of causal tracing: one fact's grid, as data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import checked
from rome_lens.data.records import Fact
from rome_lens.errors import FormatError
from rome_lens.locate.roles import token_roles
from rome_lens.models import Kind

if TYPE_CHECKING:
    import plotly.graph_objects as go

EXACT, ATTRIBUTION = "exact", "attribution"


@checked
@dataclass(frozen=True, eq=False)
class CausalTrace:
    """The (position, layer) grid of one fact and one kind of state.

    Attributes:
        fact: what was traced.
        model: name of the model.
        kind: "resid", "mlp", "attn" or "head": which states were restored.
        head: number of the attention head, for "head".
        window: how many layers at once, for "mlp" and "attn"; 1 for the others.
        samples: how many corrupted runs each number is the mean of.
        corruption: how the subject was hidden.
        metric: what `clean`, `corrupted` and `restored` are: "prob", a probability; "logprob" or "kl", nats;
            "logit_diff", logits (see `Metric`).
        method: "exact", or "attribution": a first-order approximation.
        severed: sublayers that were held at their corrupted values ("mlp", "attn").
        tokens: the prompt's tokens as text, with their leading spaces; those that make a character only together as
            東(1/2), 東(2/2).
        subject_range: positions of the subject's tokens, [start, end).
        answer: what was traced, without the leading space.
        predicted: the model's own top token after the clean prompt, without the leading space.
        clean: the metric after the clean prompt.
        corrupted: the same with the subject corrupted, mean over the samples.
        restored: [position, layer]: the same with the states there restored; NaN where that was not asked for.
        answer_tokens: the ids of what was traced.
        predicted_token: the id of the model's own top token; None, as `answer_tokens` is empty, in a trace that was
            stored by a version before these.
    """

    fact: Fact
    model: str
    kind: Kind
    head: int | None
    window: int
    samples: int
    corruption: str
    metric: str
    method: str
    severed: tuple[str, ...]
    tokens: list[str]
    subject_range: tuple[int, int]
    answer: str
    predicted: str
    clean: float
    corrupted: float
    restored: Float[Tensor, "position layer"] = field(repr=False)
    answer_tokens: tuple[int, ...] = ()
    predicted_token: int | None = None

    @property
    def total_effect(self) -> float:
        """Clean minus corrupted (paper section 2.1, TE)."""
        return self.clean - self.corrupted

    @property
    def indirect_effect(self) -> Float[Tensor, "position layer"]:
        """Restored minus corrupted (paper section 2.1, IE)."""
        return self.restored - self.corrupted

    @property
    def is_correct(self) -> bool:
        """Whether the model's own top token is the answer's first: compared as tokens, spaces included."""
        return self.answer_tokens[:1] == (self.predicted_token,)

    def to_frame(self) -> pd.DataFrame:
        """A row for each cell that was asked for: position, token, role, layer, kind, window, method, the metric under
        its own name ("prob"), and indirect_effect, its difference from the corrupted run's.
        """
        positions, layers = self.restored.shape
        index = pd.MultiIndex.from_product([range(positions), range(layers)], names=["position", "layer"])
        frame = index.to_frame(index=False)
        frame.insert(1, "token", [self.tokens[p] for p in frame["position"]])
        roles = token_roles(positions, range(*self.subject_range))
        frame.insert(2, "role", [roles[p] for p in frame["position"]])
        value = self.restored.double().flatten().numpy()
        frame = frame.assign(kind=self.kind, window=self.window, method=self.method)
        frame[self.metric] = value
        frame["indirect_effect"] = value - self.corrupted
        return frame[~frame[self.metric].isna()].reset_index(drop=True)

    def plot(self) -> "go.Figure":
        """The paper's heatmap (figure 1); see `plot_trace`."""
        from rome_lens.plots import plot_trace

        return plot_trace(self.to_frame(), answer=self.answer)

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain JSON values; `from_dict` reads them back without loss."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        grid = [[None if x != x else x for x in row] for row in self.restored.tolist()]
        return values | {"fact": asdict(self.fact), "restored": grid}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CausalTrace":
        """The trace that `to_dict` wrote.

        Raises:
            FormatError: a field is missing, unknown or broken.
        """
        try:
            grid = [[float("nan") if x is None else x for x in row] for row in values["restored"]]
            changed = {
                "fact": Fact(**values["fact"]),
                "severed": tuple(values["severed"]),
                "subject_range": tuple(values["subject_range"]),
                "restored": torch.tensor(grid),
                "answer_tokens": tuple(values.get("answer_tokens", ())),
            }
            return cls(**{**values, **changed})
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise FormatError(f"This is no causal trace: {error!r}. Trace the fact again.") from error
