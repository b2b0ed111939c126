"""Running only the suffix of each prompt: what a vector added at the edited token can change.

The search for v* adds a vector delta at the edited token s, in block l, and looks at what the model then predicts.
Attention is causal, so delta changes nothing at positions before s, and nothing below block l. Each step of the search
therefore runs only the suffix, the positions from s on, through the blocks after l, with the keys and values of earlier
positions as its past. All else is computed once. For the row "BOS The Eiffel Tower is in New" (target New York):

    block n-1   past  past  past | step   step  step  step   -> logits of the tokens New and York
      ...       past  past  past | step   step  step  step
    block l+1   past  past  past | step   step  step  step      step: run in every step, with gradients
                                 | +delta
    block l     once  once  once | once   once  once  once      once: residual states after block l
      ...       once  once  once | once   once  once  once      past: keys and values
    block 0     once  once  once | once   once  once  once
                BOS   The Eiffel | Tower  is    in    New
                                   s

Rows of several contexts and requests form one batch: pasts are padded on the left and suffixes on the right, so that s
is in the same column in all of them. Logits are computed only where a target token, or the essence, is predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rome_lens.data.records import PLACE, EditRequest
from rome_lens.edit.search.contexts import EditedToken, in_context
from rome_lens.models import (
    Model,
    PastState,
    check_added,
    contribution_change,
    key_name,
    logits,
    mlp_output,
    pad,
    run_and_read,
    run_blocks,
    run_with_past,
    state_name,
)
from rome_lens.models.teacher_forcing import target_log_probabilities

ESSENCE_PROMPT = "{} is a"

Place = Literal["mlp", "resid"]
"""Where delta is added: to the MLP's output, or to the residual stream after the block."""


@dataclass(frozen=True)
class Prompts:
    """A request's rows of tokens: contexts, prompt and target without its last token (teacher forcing).

    Attributes:
        rows: the prompt in each context, and the essence prompt, unless a row begins with it.
        subject: position of the edited token in each row.
        target: the target's tokens.
        contexts: number of rows that predict the target.
        essence: the row that predicts the essence, at its edited token.
    """

    rows: tuple[tuple[int, ...], ...]
    subject: tuple[int, ...]
    target: tuple[int, ...]
    contexts: int
    essence: int


def tokenize_prompts(
    model: Model, request: EditRequest, contexts: Sequence[str], *, token: EditedToken = "subject_end"
) -> Prompts:
    """A request's rows of tokens. Raises ValueError if one is longer than the model's context."""
    located = [in_context(model, request, context, token=token) for context in contexts]
    whole, _, start = located[0]
    rows = [text.ids[:-1] for text, _, _ in located]
    subject = [position for _, position, _ in located]
    about, position, _ = in_context(model, replace(request, prompt=ESSENCE_PROMPT), PLACE, token=token)
    essence = about.ids[: position + 1]
    same = [i for i, row in enumerate(rows) if subject[i] == position and row[: position + 1] == essence]
    if not same:
        rows.append(essence)
        subject.append(position)
    return Prompts(tuple(rows), tuple(subject), whole.ids[start:], len(located), same[0] if same else len(located))


@dataclass(frozen=True, eq=False)
class Suffixes:
    """The suffixes of several requests' rows, and what is the same in every step.

    Attributes:
        residual: states after the edited block, right-padded.
        original: in each row, the unedited activation to which delta is added, in float32.
        past: keys and values of the positions before the suffix, by block after the edited one, left-padded.
        mask: 0 at padding of past or suffix, else 1.
        request: number of each row's request.
        bare: each request's row without a context.
        row, position: where a target token is predicted (counted in `residual`).
        token: the target token that is to be predicted there.
        essence: each request's row that predicts the essence, at its first position.
        predictions: how many of them each request has.
    """

    residual: Float[Tensor, "row pos d_model"]
    original: Float[Tensor, "row d_model"]
    past: dict[int, PastState]
    mask: Int[Tensor, "row past_and_pos"]
    request: Int[Tensor, " row"]
    bare: Int[Tensor, " request"]
    row: Int[Tensor, " prediction"]
    position: Int[Tensor, " prediction"]
    token: Int[Tensor, " prediction"]
    essence: Int[Tensor, " request"]
    predictions: tuple[int, ...]

    def only(self, chosen: Sequence[bool]) -> "Suffixes":
        """The rows of some requests, which are renumbered in the same order."""
        kept = torch.tensor(chosen, device=self.request.device)
        rows = kept[self.request]
        predictions = rows[self.row]
        new_request, new_row = kept.cumsum(0) - 1, rows.cumsum(0) - 1
        return Suffixes(
            residual=self.residual[rows],
            original=self.original[rows],
            past={i: PastState(state.past_keys[rows], state.past_values[rows]) for i, state in self.past.items()},
            mask=self.mask[rows],
            request=new_request[self.request[rows]],
            bare=new_row[self.bare[kept]],
            row=new_row[self.row[predictions]],
            position=self.position[predictions],
            token=self.token[predictions],
            essence=new_row[self.essence[kept]],
            predictions=tuple(compress(self.predictions, chosen)),
        )

    def part(self, first: int, end: int) -> "Suffixes":
        """The suffixes from one of their positions to another, where each request has one row.

        `past` has to reach to the first of them.
        """
        chosen = (self.position >= first) & (self.position < end)
        residual = self.residual[:, first:end]
        seen = self.mask.shape[1] - self.residual.shape[1] + first + residual.shape[1]
        return replace(
            self,
            residual=residual,
            original=residual[:, 0].float(),
            mask=self.mask[:, :seen],
            row=self.row[chosen],
            position=self.position[chosen] - first,
            token=self.token[chosen],
            predictions=tuple(min(count, end) - first for count in self.predictions),
        )


@torch.no_grad()
def prepare_suffixes(model: Model, layer: int, prompts: Sequence[Prompts], at: Place) -> Suffixes:
    """Runs everything that no step changes, once."""
    device = model.cfg.device
    check_added(model, layer, prompts[0].rows[0])
    ids = [row for prompt in prompts for row in prompt.rows]
    subject = [position for prompt in prompts for position in prompt.subject]
    tokens, mask = (each.to(device) for each in pad(ids))
    names = state_name("resid", layer), key_name(layer)
    read = run_and_read(model, tokens, names, mask=mask, stop_at_layer=layer + 1)
    residual, keys = (read[name] for name in names)
    depth = max(1, *subject)  # at least one token, even if all subjects come first; the mask hides it
    _, past = run_with_past(model, tokens[:, :depth], mask=mask[:, :depth])

    lengths = [len(row) - position for row, position in zip(ids, subject, strict=True)]
    width = max(lengths)
    cut = residual.new_zeros(len(ids), width, model.cfg.d_model)
    seen = torch.zeros(len(ids), depth + width, dtype=torch.long)
    for i, (position, length) in enumerate(zip(subject, lengths, strict=True)):
        cut[i, :length] = residual[i, position : position + length]
        seen[i, depth - position : depth + length] = 1
    where = torch.arange(len(ids)), torch.tensor(subject)
    first_rows = [sum(len(prompt.rows) for prompt in prompts[:i]) for i in range(len(prompts))]
    predictions = [
        (first + row, len(prompt.rows[row]) - prompt.subject[row] - len(prompt.target) + i, wanted)
        for first, prompt in zip(first_rows, prompts, strict=True)
        for row in range(prompt.contexts)
        for i, wanted in enumerate(prompt.target)
    ]
    where_predicted = torch.tensor(predictions, device=device)
    owners = [i for i, prompt in enumerate(prompts) for _ in prompt.rows]
    essence = [first + prompt.essence for first, prompt in zip(first_rows, prompts, strict=True)]
    return Suffixes(
        residual=cut,
        original=mlp_output(model, layer, keys[where]) if at == "mlp" else residual[where].float(),
        past={i: _left_padded(state, subject, depth) for i, state in enumerate(past) if i > layer},
        mask=seen.to(device),
        request=torch.tensor(owners, device=device),
        bare=torch.tensor(first_rows, device=device),
        row=where_predicted[:, 0],
        position=where_predicted[:, 1],
        token=where_predicted[:, 2],
        essence=torch.tensor(essence, device=device),
        predictions=tuple(prompt.contexts * len(prompt.target) for prompt in prompts),
    )


def _left_padded(state: PastState, lengths: Sequence[int], width: int) -> PastState:
    def shift(values: Tensor) -> Tensor:
        shifted = values.new_zeros(len(values), width, *values.shape[2:])
        for i, length in enumerate(lengths):
            shifted[i, width - length :] = values[i, :length]
        return shifted

    return PastState(shift(state.past_keys), shift(state.past_values))


def run_suffixes(
    model: Model, layer: int, suffixes: Suffixes, delta: Float[Tensor, "request d_model"], at: Place
) -> tuple[Float[Tensor, " request"], Float[Tensor, "request d_vocab"], Bool[Tensor, " request"]]:
    """The two terms of Eq. 4, differentiable: the mean negative log-probability of a target token over contexts and
    tokens, and the log-probabilities of the next token after the essence prompt. Last, whether each target token is the
    most probable one in all contexts.
    """
    change = delta[suffixes.request]
    if at == "mlp":
        change = contribution_change(model, layer, suffixes.original, change)
    first = suffixes.residual[:, :1] + change[:, None].to(suffixes.residual.dtype)
    residual = torch.cat([first, suffixes.residual[:, 1:]], dim=1)
    residual = run_blocks(model, residual, layer + 1, model.cfg.n_layers, past=suffixes.past, mask=suffixes.mask)
    needed = torch.cat([residual[suffixes.row, suffixes.position], residual[suffixes.essence, 0]])
    predicted, essence = logits(model, needed).split([len(suffixes.row), len(suffixes.essence)])
    target = target_log_probabilities(predicted, suffixes.token)
    on_top = predicted.argmax(-1) == suffixes.token
    return (
        torch.stack([-part.mean() for part in target.split(suffixes.predictions)]),
        essence.log_softmax(-1),
        torch.stack([part.all() for part in on_top.split(suffixes.predictions)]),
    )
