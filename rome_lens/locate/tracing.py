"""Causal tracing: how much of the answer comes back when one hidden state is restored (paper section 2.1)."""

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from rome_lens.facts import Fact, subject_range
from rome_lens.locate.corruption import GaussianNoise
from rome_lens.locate.grid import CleanRun, CorruptedRun, clean_run, corrupted_run, restored_probabilities
from rome_lens.locate.roles import token_roles
from rome_lens.models import Kind, logits, run
from rome_lens.tokens import tokenize_continuation

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class CausalTrace:
    """The whole (position, layer) grid of one fact and one kind of state.

    Attributes:
        fact: what was traced.
        kind: "resid", "mlp" or "attn": which states were restored.
        window: how many layers at once, for "mlp" and "attn"; 1 for "resid".
        samples: how many noise samples each probability is the mean of.
        noise_std: standard deviation of the noise.
        tokens: the prompt's tokens as text.
        subject_range: positions of the subject's tokens, [start, end).
        answer: whose probability was traced, without the leading space.
        predicted: the model's own top token after the clean prompt, without the leading space.
        clean: the answer's probability after the clean prompt.
        corrupted: the same with the subject corrupted, mean over the samples.
        restored: [position, layer]: the same with the states there restored.
    """

    fact: Fact
    kind: Kind
    window: int
    samples: int
    noise_std: float
    tokens: list[str]
    subject_range: tuple[int, int]
    answer: str
    predicted: str
    clean: float
    corrupted: float
    restored: Float[Tensor, "position layer"] = field(repr=False)

    @property
    def total_effect(self) -> float:
        """Clean minus corrupted probability (paper section 2.1, TE)."""
        return self.clean - self.corrupted

    @property
    def indirect_effect(self) -> Float[Tensor, "position layer"]:
        """Restored minus corrupted probability (paper section 2.1, IE)."""
        return self.restored - self.corrupted

    def to_frame(self) -> pd.DataFrame:
        """A row for each cell: position, token, role, layer, kind, window, prob, indirect_effect."""
        positions, layers = self.restored.shape
        index = pd.MultiIndex.from_product([range(positions), range(layers)], names=["position", "layer"])
        frame = index.to_frame(index=False)
        frame.insert(1, "token", [self.tokens[p] for p in frame["position"]])
        roles = token_roles(positions, range(*self.subject_range))
        frame.insert(2, "role", [roles[p] for p in frame["position"]])
        prob = self.restored.double().flatten().numpy()
        return frame.assign(kind=self.kind, window=self.window, prob=prob, indirect_effect=prob - self.corrupted)

    def plot(self) -> "go.Figure":
        """The paper's heatmap (figure 1); see `plot_trace`."""
        from rome_lens.plots import plot_trace

        return plot_trace(self.to_frame(), answer=self.answer)


@torch.no_grad()
def causal_trace(
    model: HookedTransformer,
    fact: Fact,
    *,
    kind: Kind = "resid",
    window: int = 10,
    samples: int = 10,
    corruption: GaussianNoise | None = None,
    tokens_per_batch: int = 8192,
    progress: bool = True,
) -> CausalTrace:
    """Restores each hidden state of a corrupted run in turn, and reads the answer's probability (paper section 2.1).

    An answer of several tokens is scored by teacher forcing: the product of its tokens' probabilities. Without an
    answer in the fact, the model's own top token is traced; an answer that the model does not predict is traced all
    the same, with a warning.

    Args:
        model: is run, not changed.
        fact: prompt, subject and, if wanted, answer.
        kind: "resid": a block's output; "mlp", "attn": what a window of MLPs or attentions adds to the residual.
        window: number of layers restored together for "mlp" and "attn", around each layer as `restored_layers` says.
        samples: number of corrupted runs that each probability is averaged over.
        corruption: by default Gaussian noise of 3 sigma.
        tokens_per_batch: bounds memory; the result does not depend on it.
        progress: shows a bar.

    Raises:
        ValueError: the subject has no tokens, the prompt is longer than the context, an argument is out of range, or
            the model's output is not finite.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(map(repr, get_args(Kind)))}.")
    for name, value in {"window": window, "samples": samples, "tokens_per_batch": tokens_per_batch}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected a whole number from 1 on.")
    corruption = GaussianNoise() if corruption is None else corruption
    asked = _question(model, fact)
    clean = clean_run(model, asked.tokens, asked.answer, kind)
    noise = corruption.sample(model, samples, len(asked.subject))
    corrupted = corrupted_run(model, asked.tokens, asked.answer, asked.subject, noise)
    if not math.isfinite(clean.probability + corrupted.probability):
        raise ValueError(
            f"The answer's probability is {clean.probability} after the clean and {corrupted.probability} after the "
            "corrupted prompt. Check the model's weights (NaN?), or load the model in float32."
        )
    positions = range(asked.subject.start, asked.length)
    restored = _grid(model, clean, corrupted, asked.answer, kind, window, positions, tokens_per_batch, progress)
    return CausalTrace(
        fact=fact,
        kind=kind,
        window=1 if kind == "resid" else window,
        samples=samples,
        noise_std=corruption.scale(model),
        tokens=[model.tokenizer.decode([token]) for token in asked.tokens[: asked.length].tolist()],
        subject_range=(asked.subject.start, asked.subject.stop),
        answer=fact.answer.strip() if fact.answer else asked.predicted,
        predicted=asked.predicted,
        clean=clean.probability,
        corrupted=corrupted.probability,
        restored=restored.cpu(),
    )


@dataclass(frozen=True, eq=False)
class _Question:
    """A fact as tokens: the prompt's, followed by the answer's but the last (teacher forcing)."""

    tokens: Int[Tensor, " pos"]
    answer: Int[Tensor, " answer"]
    subject: range
    length: int  # of the prompt
    predicted: str


def _question(model: HookedTransformer, fact: Fact) -> _Question:
    """Tokenises the fact, and warns if the model does not predict the answer that it names."""
    text, subject = subject_range(model, fact)
    prompt = torch.tensor(text.ids, device=model.cfg.device)
    top = int(logits(model, run(model, prompt[None])[:, -1]).argmax())
    predicted = model.tokenizer.decode([top]).strip()
    if fact.answer is None:
        return _Question(prompt, prompt.new_tensor([top]), subject, len(prompt), predicted)
    whole, start = tokenize_continuation(model, text.text, fact.answer)
    if whole.ids[start] != top:
        warnings.warn(
            f"The model does not predict {fact.answer!r} after {text.text!r} but {predicted!r}. The trace follows "
            "the answer that was named; leave the answer out to trace the model's own.",
            stacklevel=4,  # the caller of causal_trace, which no_grad wraps
        )
    tokens = prompt.new_tensor(whole.ids)
    return _Question(tokens[:-1], tokens[start:], subject, start, predicted)


def _grid(
    model: HookedTransformer,
    clean: CleanRun,
    corrupted: CorruptedRun,
    answer: Tensor,
    kind: Kind,
    window: int,
    positions: range,
    tokens_per_batch: int,
    progress: bool,
) -> Float[Tensor, "position layer"]:
    """Positions before the corrupted ones have no effect: there the answer is the corrupted run's."""
    n_layers, (samples, length) = model.cfg.n_layers, corrupted.residual.shape[1:3]
    restored = torch.full((positions.stop, n_layers), corrupted.probability, device=clean.states.device)
    for position in tqdm(positions, desc=f"causal trace, {kind}", unit="position", disable=not progress):
        step = max(1, tokens_per_batch // (samples * (length - position)))
        for start in range(0, n_layers, step):
            layers = range(start, min(start + step, n_layers))
            restored[position, layers.start : layers.stop] = restored_probabilities(
                model, clean, corrupted, answer, kind=kind, window=window, position=position, layers=layers
            )
    return restored
