"""What a vector that is added at the edited token can change: the rows from that token on, after its block.

The blocks up to the edited one, and keys and values of the positions before the edited token, are computed once;
logits only where a target token or the essence is predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

ESSENCE_PROMPT = "{} is a"

Place = Literal["mlp", "resid"]


@dataclass(frozen=True)
class Prompts:
    """A request's rows of tokens, each with the target's tokens but the last after it (teacher forcing).

    Attributes:
        rows: the prompt in each context, and the essence prompt if none of them begins with it.
        subject: the position of the edited token, as a rule the subject's last one, in each row.
        target: the target's tokens.
        contexts: how many of the rows predict the target.
        essence: the row whose prediction at the edited token is the essence's.
    """

    rows: tuple[tuple[int, ...], ...]
    subject: tuple[int, ...]
    target: tuple[int, ...]
    contexts: int
    essence: int

    @property
    def tokens(self) -> int:
        """How many tokens the rows hold, padding included."""
        return len(self.rows) * max(map(len, self.rows))


def tokenize_prompts(
    model: Model, request: EditRequest, contexts: Sequence[str], *, token: EditedToken = "subject_last"
) -> Prompts:
    """Raises ValueError if the prompt in a context is longer than the model's context."""
    located = [in_context(model, request, context, token=token) for context in contexts]
    whole, _, start = located[0]
    rows = [text.ids[:-1] for text, _, _ in located]
    subject = [position for _, position, _ in located]
    about, position, _ = in_context(model, replace(request, prompt=ESSENCE_PROMPT), PLACE, token=token)
    essence = about.ids[: position + 1]
    alike = [i for i, row in enumerate(rows) if subject[i] == position and row[: position + 1] == essence]
    if not alike:
        rows.append(essence)
        subject.append(position)
    return Prompts(tuple(rows), tuple(subject), whole.ids[start:], len(located), alike[0] if alike else len(located))


@dataclass(frozen=True, eq=False)
class Tails:
    """The rows of several requests from the edited token on, and all that stays the same in every step.

    Attributes:
        residual: states after the edited block, right-padded.
        original: the vector, in float32, that is sought anew: of the edited token, in each row.
        past: keys and values of earlier positions at later blocks, left-padded.
        mask: 0 where either is padded.
        request: of each row, its number.
        bare: each request's first row, the prompt alone.
        row, position: where a target token is predicted (in `residual`'s positions).
        token: that target token.
        essence: each request's row that predicts the essence, at its first position.
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

    def only(self, kept: Bool[Tensor, " request"]) -> "Tails":
        """Without the rows of the other requests; those that are kept get new numbers in the same order."""
        rows = kept[self.request]
        predictions = rows[self.row]
        new_request, new_row = kept.cumsum(0) - 1, rows.cumsum(0) - 1
        return Tails(
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
        )


@torch.no_grad()
def run_until_tails(model: Model, layer: int, prompts: Sequence[Prompts], at: Place) -> Tails:
    """Runs what comes before the tails, once.

    Raises:
        EditError: the block does not simply add what its MLP contributes to the residual stream.
    """
    device = model.cfg.device
    check_added(model, layer, prompts[0].rows[0])
    ids = [row for prompt in prompts for row in prompt.rows]
    subject = [position for prompt in prompts for position in prompt.subject]
    tokens, mask = (each.to(device) for each in pad(ids))
    names = state_name("resid", layer), key_name(layer)
    read = run_and_read(model, tokens, names, mask=mask, stop_at_layer=layer + 1)
    residual, keys = (read[name] for name in names)
    depth = max(1, *subject)  # a model is not run on no tokens at all; the mask hides what stands there for nothing
    _, past = run_with_past(model, tokens[:, :depth], mask=mask[:, :depth])

    tails = [len(row) - position for row, position in zip(ids, subject, strict=True)]
    width = max(tails)
    cut = residual.new_zeros(len(ids), width, model.cfg.d_model)
    joined = torch.zeros(len(ids), depth + width, dtype=torch.long)
    for i, (position, tail) in enumerate(zip(subject, tails, strict=True)):
        cut[i, :tail] = residual[i, position : position + tail]
        joined[i, depth - position : depth + tail] = 1
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
    return Tails(
        residual=cut,
        original=mlp_output(model, layer, keys[where]) if at == "mlp" else residual[where].float(),
        past={i: _left_padded(state, subject, depth) for i, state in enumerate(past) if i > layer},
        mask=joined.to(device),
        request=torch.tensor(owners, device=device),
        bare=torch.tensor(first_rows, device=device),
        row=where_predicted[:, 0],
        position=where_predicted[:, 1],
        token=where_predicted[:, 2],
        essence=torch.tensor(essence, device=device),
    )


def _left_padded(state: PastState, lengths: Sequence[int], width: int) -> PastState:
    def shift(values: Tensor) -> Tensor:
        shifted = values.new_zeros(len(values), width, *values.shape[2:])
        for i, length in enumerate(lengths):
            shifted[i, width - length :] = values[i, :length]
        return shifted

    return PastState(shift(state.past_keys), shift(state.past_values))


def run_tails(
    model: Model, layer: int, tails: Tails, delta: Float[Tensor, "request d_model"], at: Place
) -> tuple[Float[Tensor, " request"], Float[Tensor, "request d_vocab"], Bool[Tensor, " request"]]:
    """What Eq. 4 is made of, differentiable: the mean negative log-probability of a target token (over contexts and
    tokens), and the log-probabilities of all tokens after the essence's subject. Last, whether each target token is the
    most probable one in all contexts.
    """
    change = delta[tails.request]
    if at == "mlp":
        change = contribution_change(model, layer, tails.original, change)
    first = tails.residual[:, :1] + change[:, None].to(tails.residual.dtype)
    residual = torch.cat([first, tails.residual[:, 1:]], dim=1)
    residual = run_blocks(model, residual, layer + 1, model.cfg.n_layers, past=tails.past, mask=tails.mask)
    needed = torch.cat([residual[tails.row, tails.position], residual[tails.essence, 0]])
    predicted, essence = logits(model, needed).log_softmax(-1).split([len(tails.row), len(tails.essence)])
    target = predicted.gather(-1, tails.token[:, None])[:, 0]
    of_request = tails.request[tails.row].bincount().tolist()
    on_top = predicted.argmax(-1) == tails.token
    return (
        torch.stack([-part.mean() for part in target.split(of_request)]),
        essence,
        torch.stack([part.all() for part in on_top.split(of_request)]),
    )
