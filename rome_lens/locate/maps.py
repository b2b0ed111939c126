"""Several maps of one fact from one clean and one corrupted run: of several kinds of states, or of all heads."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import checked, checked_result
from rome_lens.data.records import Fact, subject_range
from rome_lens.locate.config import TraceConfig, counted_from_start, with_options
from rome_lens.locate.own import name_of
from rome_lens.locate.trace import CausalTrace
from rome_lens.locate.tracing import trace_alike
from rome_lens.models import Kind, Model

if TYPE_CHECKING:
    import plotly.graph_objects as go


@checked
def trace_kinds(
    model: Model,
    fact: Fact,
    *,
    kinds: Sequence[Kind] = ("resid", "mlp", "attn"),
    config: TraceConfig | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[Kind, CausalTrace]:
    """Traces a fact for several kinds of states, all from one clean and one corrupted run (paper figure 1).

    Each trace is the one that `causal_trace` gives for its kind. By attribution, the clean run is shared, and each kind
    has a corrupted run with its gradient. `plot_traces` draws them beside each other, and `average_effects` takes them
    as `list(traces.values())`.

    Args:
        fact: Prompt, subject and, optionally, answer.
        kinds: States to restore, each kind once.
        config: How to trace; its kind is not used.
        options: Fields of `TraceConfig` that replace the config's; `head` is that of the kind "head".

    Returns:
        A trace for each kind, in their order.

    Raises:
        ValueError: no kinds, or one twice; and as `causal_trace`.
    """
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds is {list(kinds)}, expected at least one kind, and each once.")
    shared = with_options(config, options)
    configs = [replace(shared, kind=kind, head=shared.head if kind == "head" else None) for kind in kinds]
    traces = trace_alike(model, fact, configs, tokens_per_batch=tokens_per_batch, progress=progress)
    return dict(zip(kinds, traces, strict=True))


@checked_result
@dataclass(frozen=True, eq=False)
class HeadMap:
    """What every attention head does at one position: the result of `trace_heads`.

    Attributes:
        fact: The fact that was traced.
        model: Name of the model.
        config: How it was traced; its head is that of the last column.
        position: Where the heads' outputs were restored.
        token: The token there, as text.
        answer: The answer that was traced, without the leading space.
        clean: The metric after the clean prompt.
        corrupted: The metric with the subject corrupted, mean over the samples.
        restored: [layer, head]: the metric with that head's output restored; NaN in layers that were not traced.
    """

    fact: Fact
    model: str
    config: TraceConfig
    position: int
    token: str
    answer: str
    clean: float
    corrupted: float
    restored: Float[Tensor, "layer head"] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """A row for each head: layer, head, position, token, the metric under its name, and indirect_effect."""
        layers, heads = self.restored.shape
        index = pd.MultiIndex.from_product([range(layers), range(heads)], names=["layer", "head"])
        value = self.restored.double().flatten().numpy()
        frame = index.to_frame(index=False).assign(position=self.position, token=self.token)
        metric = name_of(self.config.metric)
        frame = frame.assign(**{metric: value}, indirect_effect=value - self.corrupted)
        return frame[~frame[metric].isna()].reset_index(drop=True)

    def plot(self) -> "go.Figure":
        """Layers across, heads down; see `plot_heads`."""
        from rome_lens.plots import plot_heads

        return plot_heads(self)


@checked
def trace_heads(
    model: Model,
    fact: Fact,
    *,
    position: int | None = None,
    config: TraceConfig | None = None,
    tokens_per_batch: int | None = None,
    progress: bool = True,
    **options: Any,
) -> HeadMap:
    """Restores each attention head's output at one position, in every layer, from one clean and one corrupted run.

    Each column is the row that `causal_trace` gives for kind "head", that head and that position.

    Args:
        fact: Prompt, subject and, optionally, answer.
        position: Number of the token, from the end if negative; None: the prompt's last one, where attention has its
            effect (paper figure 2).
        config: How to trace; its kind, head and positions are not used.
        options: Fields of `TraceConfig` that replace the config's.

    Raises:
        ValueError: the position does not exist; and as `causal_trace`.
    """
    length = len(subject_range(model, fact)[0].ids)
    (place,) = counted_from_start("positions", [-1 if position is None else position], length, "the prompt") or ()
    shared = replace(with_options(config, options), kind="head", head=0, positions=(place,))
    configs = [replace(shared, head=head) for head in range(model.cfg.n_heads)]
    found = trace_alike(model, fact, configs, tokens_per_batch=tokens_per_batch, progress=False)
    traces = list(tqdm(found, total=len(configs), desc="causal trace", unit="head", disable=not progress))
    one = traces[-1]
    return HeadMap(
        fact=fact,
        model=one.model,
        config=one.config,
        position=place,
        token=one.tokens[place],
        answer=one.answer,
        clean=one.clean,
        corrupted=one.corrupted,
        restored=torch.stack([trace.restored[place] for trace in traces], dim=1),
    )
