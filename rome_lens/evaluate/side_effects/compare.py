"""Compares two conditions (an edit, hooks, other weights) on prompts: predictions, logit lens, layer outputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.records import check_prompts
from rome_lens.edit.artifact.edit import Edit
from rome_lens.models import HookList, Kind, Model, check_finite, logits, run_and_read, state_name
from rome_lens.models.labels import token_text
from rome_lens.models.prediction import divergence
from rome_lens.models.tokens import TokenizedText, tokenize
from rome_lens.plots import plot_comparison

BEFORE, AFTER = "before", "after"
_KINDS: tuple[Kind, ...] = ("resid", "attn", "mlp")


@checked
@dataclass(frozen=True, eq=False)
class ModelComparison:
    """Result of `compare_models`: frames with a column `prompt`.

    Attributes:
        tokens: a row for each token that is among the top ones before or after: token, before and after
            (probabilities), rank_before and rank_after (1 is the most probable).
        divergence: kl, the divergence KL(before || after) of the next-token distributions, in nats.
        lens: the logit lens at the last position (final norm and unembedding, applied to the residual stream after each
            block): condition ("before" or "after"), layer, token and probability (its top token), answer (the model's
            top token after the change) and answer_probability.
        contributions: change of each layer's attention and MLP output at the last position: layer, kind ("attn" or
            "mlp"), change, which is |after - before| / |before|.
    """

    tokens: pd.DataFrame
    divergence: pd.DataFrame
    lens: pd.DataFrame
    contributions: pd.DataFrame

    def plot(self) -> go.Figure:
        """Lens and contributions by layer, averaged over the prompts: see `plot_comparison`."""
        return plot_comparison(self)


@dataclass(frozen=True, eq=False)
class _Observed:
    """One prompt's last position: each layer's outputs, and the logit lens after it."""

    outputs: dict[Kind, Float[Tensor, "layer d_model"]]
    log_probs: Float[Tensor, "layer d_vocab"]


@checked
@torch.no_grad()
def compare_models(
    model: Model,
    other: Model | Edit | HookList,
    prompts: Sequence[str],
    *,
    top: int = 5,
    progress: bool = True,
) -> ModelComparison:
    """Runs prompts in two conditions, before and after a change, and compares them.

    Args:
        model: Model before the change; left unchanged, also if `other` is an edit.
        other: The change: another model of the same shape and tokenizer, an edit of `model`, or hooks on the blocks of
            `model` as (name, function) pairs, as `run_with_hooks` takes them.
        prompts: Texts; duplicates are dropped.
        top: Number of top tokens to list in each condition.

    Raises:
        ValueError: no prompts, a blank or too long one, `top` is below 1, or the models have different shapes.
        NotFiniteError: a model's logits are NaN or infinite.
    """
    check_prompts(prompts)
    if not 1 <= top <= model.cfg.d_vocab:
        raise ValueError(f"top is {top}, expected a number from 1 to {model.cfg.d_vocab}.")
    texts = [tokenize(model, prompt) for prompt in dict.fromkeys(prompts)]
    with tqdm(total=2 * len(texts), desc="compare", unit="run", disable=not progress) as bar:

        def observe(model: Model, hooks: HookList) -> list[_Observed]:
            observed = []
            for text in texts:
                observed.append(_observe(model, text, hooks))
                bar.update()
            return observed

        before = observe(model, ())
        with _changed(model, other) as (changed, hooks):
            after = observe(changed, hooks)
    compared = list(zip(texts, before, after, strict=True))
    return ModelComparison(
        tokens=pd.concat([_tokens(model, *each, top) for each in compared], ignore_index=True),
        divergence=pd.DataFrame(
            {
                "prompt": [text.text for text in texts],
                "kl": [divergence(b.log_probs[-1:], a.log_probs[-1:]).item() for _, b, a in compared],
            }
        ),
        lens=pd.concat([_lens(model, *each) for each in compared], ignore_index=True),
        contributions=pd.concat([_contributions(*each) for each in compared], ignore_index=True),
    )


@contextmanager
def _changed(model: Model, other: Model | Edit | HookList) -> Iterator[tuple[Model, HookList]]:
    """The condition after the change: a model, and hooks to run it with."""
    if isinstance(other, Edit):
        with other.applied(model):
            yield model, ()
    elif isinstance(other, Model):
        shapes = [(each.cfg.n_layers, each.cfg.d_model, each.cfg.d_vocab) for each in (model, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{model.cfg.model_name} and {other.cfg.model_name} have {shapes[0]} and {shapes[1]} layers, "
                "dimensions and tokens, expected the same. Compare a model with a changed copy of it."
            )
        yield other, ()
    else:
        yield model, other


def _observe(model: Model, text: TokenizedText, hooks: HookList) -> _Observed:
    layers = range(model.cfg.n_layers)
    names = {kind: [state_name(kind, layer) for layer in layers] for kind in _KINDS}
    tokens = torch.tensor([text.ids], device=model.cfg.device)
    read = run_and_read(model, tokens, [name for kind in _KINDS for name in names[kind]], hooks=hooks)
    outputs = {kind: torch.stack([read[name][0, -1] for name in names[kind]]) for kind in _KINDS}
    scores = logits(model, outputs["resid"])
    check_finite(model, scores, [text.ids] * len(scores))
    return _Observed({kind: output.float().cpu() for kind, output in outputs.items()}, scores.log_softmax(-1).cpu())


def _tokens(model: Model, text: TokenizedText, before: _Observed, after: _Observed, top: int) -> pd.DataFrame:
    frame = pd.DataFrame({BEFORE: before.log_probs[-1].exp().numpy(), AFTER: after.log_probs[-1].exp().numpy()})
    ranks = frame.rank(ascending=False, method="first").astype(int)
    frame = frame.assign(rank_before=ranks[BEFORE], rank_after=ranks[AFTER])
    frame = frame[(ranks <= top).any(axis=1)].sort_values("rank_after")
    names = [token_text(model, token) for token in frame.index]
    frame.insert(0, "token", names)
    frame.insert(0, "prompt", text.text)
    return frame


def _lens(model: Model, text: TokenizedText, before: _Observed, after: _Observed) -> pd.DataFrame:
    answer = int(after.log_probs[-1].argmax())
    parts = []
    for condition, observed in ((BEFORE, before), (AFTER, after)):
        probabilities = observed.log_probs.exp()
        best = probabilities.max(-1)
        parts.append(
            pd.DataFrame(
                {
                    "prompt": text.text,
                    "condition": condition,
                    "layer": range(len(probabilities)),
                    "token": [token_text(model, token) for token in best.indices.tolist()],
                    "probability": best.values.numpy(),
                    "answer": token_text(model, answer),
                    "answer_probability": probabilities[:, answer].numpy(),
                }
            )
        )
    return pd.concat(parts)


def _contributions(text: TokenizedText, before: _Observed, after: _Observed) -> pd.DataFrame:
    parts = []
    for kind in _KINDS[1:]:
        change = (after.outputs[kind] - before.outputs[kind]).norm(dim=-1) / before.outputs[kind].norm(dim=-1)
        parts.append(
            pd.DataFrame({"prompt": text.text, "layer": range(len(change)), "kind": kind, "change": change.numpy()})
        )
    return pd.concat(parts)
