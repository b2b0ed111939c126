"""The result of causal tracing: one fact's grid, as data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import checked_result
from rome_lens.data.records import Fact
from rome_lens.locate.config import TraceConfig
from rome_lens.locate.own import name_of
from rome_lens.locate.roles import token_roles
from rome_lens.models import Kind
from rome_lens.storage import foreign

if TYPE_CHECKING:
    import plotly.graph_objects as go


@checked_result
@dataclass(frozen=True, eq=False)
class CausalTrace:
    """The (position, layer) grid of one fact and one kind of state.

    Attributes:
        fact: the fact that was traced.
        model: name of the model.
        config: how it was traced: with the number of samples that were run, the noise's std as a number, and a window
            of 1 where one layer was restored at a time.
        tokens: the prompt's tokens as text, with their leading spaces; tokens that share a character are labelled
            東(1/2), 東(2/2).
        subject_range: positions of the subject's tokens, [start, end).
        answer: the answer that was traced, without the leading space.
        answer_tokens: its ids.
        predicted: the model's own top token after the clean prompt, without the leading space.
        predicted_token: its id.
        clean: the metric after the clean prompt.
        corrupted: the metric with the subject corrupted, mean over the samples.
        restored: [position, layer]: the metric with the states there restored; NaN in cells that were not traced.
    """

    fact: Fact
    model: str
    config: TraceConfig
    tokens: list[str]
    subject_range: tuple[int, int]
    answer: str
    answer_tokens: tuple[int, ...]
    predicted: str
    predicted_token: int
    clean: float
    corrupted: float
    restored: Float[Tensor, "position layer"] = field(repr=False)

    @property
    def kind(self) -> Kind:
        """Which states were restored."""
        return self.config.kind

    @property
    def metric(self) -> str:
        """The name of the metric of `clean`, `corrupted` and `restored`."""
        return name_of(self.config.metric)

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
        """Whether the model's own top token is the answer's first token, spaces included."""
        return self.answer_tokens[:1] == (self.predicted_token,)

    def to_frame(self) -> pd.DataFrame:
        """A row for each traced cell.

        The columns are position, token, role, layer, kind, window, method, the metric under its own name ("prob"), and
        indirect_effect, its difference from the corrupted run's.
        """
        positions, layers = self.restored.shape
        index = pd.MultiIndex.from_product([range(positions), range(layers)], names=["position", "layer"])
        frame = index.to_frame(index=False)
        frame.insert(1, "token", [self.tokens[p] for p in frame["position"]])
        roles = token_roles(positions, range(*self.subject_range))
        frame.insert(2, "role", [roles[p] for p in frame["position"]])
        value = self.restored.double().flatten().numpy()
        frame = frame.assign(kind=self.kind, window=self.config.window, method=self.config.method)
        frame[self.metric] = value
        frame["indirect_effect"] = value - self.corrupted
        return frame[~frame[self.metric].isna()].reset_index(drop=True)

    def plot(self) -> "go.Figure":
        """The paper's heatmap (figure 1); see `plot_trace`."""
        from rome_lens.plots import plot_trace

        return plot_trace(self)

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain JSON values; `from_dict` reads them back without loss."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        grid = [[None if x != x else x for x in row] for row in self.restored.tolist()]
        return values | {"fact": asdict(self.fact), "config": self.config.to_dict(), "restored": grid}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CausalTrace":
        """The trace that `to_dict` wrote.

        Raises:
            FormatError: a field is missing, unknown or malformed.
        """
        with foreign("This", "is no causal trace", "Trace the fact again."):
            grid = [[float("nan") if x is None else x for x in row] for row in values["restored"]]
            changed = {
                "fact": Fact(**values["fact"]),
                "config": TraceConfig.from_dict(values["config"]),
                "subject_range": tuple(values["subject_range"]),
                "restored": torch.tensor(grid, dtype=torch.float32),
                "answer_tokens": tuple(values["answer_tokens"]),
            }
            trace = cls(**{**values, **changed})
            start, end = trace.subject_range
            if trace.restored.ndim != 2 or len(grid) != len(trace.tokens) or not 0 <= start < end <= len(grid):
                raise ValueError(
                    f"a grid {list(trace.restored.shape)} of {len(trace.tokens)} tokens, subject at {start} to {end}"
                )
            return trace
