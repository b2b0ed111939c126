"""v*: what the MLP has to answer to k* so that the model says the target (paper section 3.1, step 2, Eq. 4).

Only what the sought vector can change is computed in each step: the blocks after the edited one, the positions from the
subject's last token on (keys and values of what stands before them are computed once), and the logits where a target
token or the essence is predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from rome_lens.edit.config import RomeConfig
from rome_lens.edit.contexts import in_context
from rome_lens.errors import EditError
from rome_lens.facts import PLACE, EditRequest
from rome_lens.models import (
    Hook,
    PastState,
    frozen,
    key_name,
    logits,
    mlp_contribution,
    mlp_output,
    run_blocks,
    run_with_past,
    state_name,
)
from rome_lens.tokens import pad, tokenize_continuation

ESSENCE_PROMPT = "{} is a"


@dataclass(frozen=True)
class Value:
    """v* and how its search ended.

    Attributes:
        vector: [d_model], float32: v*.
        steps: how many gradient steps were taken.
        nll: mean negative log-probability of a target token, over contexts (first term of Eq. 4).
        kl: divergence of the essence prompt's next token from what it was (second term), before its factor.
        weight_decay: the norm penalty, with its factor.
        clamped: whether the norm bound was reached.
    """

    vector: Float[Tensor, " d_model"]
    steps: int
    nll: float
    kl: float
    weight_decay: float
    clamped: bool


@dataclass(frozen=True)
class _Prepared:
    """What stays the same in every step. Rows: the prompt in each context, and last the essence prompt."""

    residual: Float[Tensor, "row pos d_model"]  # after the edited block, from the subject's last token on, right-padded
    output: Float[Tensor, "row d_model"]  # of the edited MLP at the subject's last token
    past: dict[int, PastState]  # of earlier positions at later blocks, left-padded
    mask: Int[Tensor, "row past_and_pos"]
    predicting: Int[Tensor, "context target"]  # where in residual's positions each target token is predicted
    target: Int[Tensor, " target"]


def optimise_value(
    model: HookedTransformer,
    layer: int,
    request: EditRequest,
    contexts: Sequence[str],
    config: RomeConfig,
    *,
    progress: bool = True,
) -> Value:
    """Finds v* by Adam on a vector that is added to the MLP's output at the subject's last token.

    No parameter of the model gets a gradient or is changed.

    Raises:
        EditError: the loss is not finite.
        ValueError: the prompt in a context is longer than the model's context.
    """
    with torch.no_grad():
        prepared = _prepare(model, layer, request, contexts)
    initial = prepared.output[0]
    delta = torch.zeros_like(initial, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=config.learning_rate)
    bound = config.clamp_norm_factor * initial.norm()
    essence: Tensor | None = None
    clamped = False
    with (
        frozen(model),
        torch.enable_grad(),
        tqdm(range(config.steps), desc=f"v* for {request.target!r}", unit="step", disable=not progress) as bar,
    ):
        for step in bar:
            target_log_probs, essence_log_probs = _forward(model, layer, prepared, delta)
            essence = essence_log_probs.detach() if essence is None else essence
            nll = -target_log_probs.mean()
            kl = nn.functional.kl_div(essence, essence_log_probs, log_target=True, reduction="sum")
            decay = config.weight_decay * delta.norm() / initial.norm() ** 2
            loss = nll + config.kl_factor * kl + decay
            if not loss.isfinite():
                raise EditError(
                    f"The search for v* failed at step {step}: the loss is {loss.item()}. Check the model's weights "
                    "(NaN?), lower learning_rate, or load the model in float32. No weight was changed."
                )
            bar.set_postfix(loss=f"{loss.item():.3f}", target=f"{(-nll).exp().item():.3f}")
            if loss < config.early_stop_loss or step == config.steps - 1:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                clamped = bool(delta.norm() > bound)
                if clamped:
                    delta *= bound / delta.norm()
    return Value((initial + delta).detach(), step, nll.item(), kl.item(), decay.item(), clamped)


def _prepare(model: HookedTransformer, layer: int, request: EditRequest, contexts: Sequence[str]) -> _Prepared:
    whole, target_start = tokenize_continuation(model, request.text, request.target)
    target = whole.ids[target_start:]
    # The target's tokens but the last are part of the input: teacher forcing.
    before_last = whole.text[len(request.text) : whole.offsets[-1][0] if len(target) > 1 else len(request.text)]
    located = [in_context(model, request, context, after=before_last) for context in contexts]
    essence = EditRequest(ESSENCE_PROMPT, request.subject, request.target)
    essence_text, essence_position = in_context(model, essence, PLACE)
    ids = [text.ids for text, _ in located] + [essence_text.ids[: essence_position + 1]]
    subject = [position for _, position in located] + [essence_position]

    device = model.cfg.device
    rows, mask = pad(ids)
    states: dict[str, Tensor] = {}
    hooks = [(name, _keep(states, name)) for name in (state_name("resid", layer), key_name(layer))]
    _, past = run_with_past(model, rows.to(device), mask=mask.to(device), hooks=hooks)

    tails = [len(row) - position for row, position in zip(ids, subject, strict=True)]
    width, depth = max(tails), max(subject)
    residual = rows.new_zeros(len(ids), width, model.cfg.d_model).to(states[state_name("resid", layer)])
    joined = torch.zeros(len(ids), depth + width, dtype=torch.long)
    for i, (position, tail) in enumerate(zip(subject, tails, strict=True)):
        residual[i, :tail] = states[state_name("resid", layer)][i, position : position + tail]
        joined[i, depth - position : depth + tail] = 1
    keys = states[key_name(layer)][torch.arange(len(ids)), torch.tensor(subject)]
    return _Prepared(
        residual=residual,
        output=mlp_output(model, layer, keys),
        past={i: _left_padded(state, subject) for i, state in enumerate(past) if i > layer},
        mask=joined.to(device),
        predicting=(torch.tensor(tails[:-1])[:, None] - len(target) + torch.arange(len(target))).to(device),
        target=torch.tensor(target, device=device),
    )


def _left_padded(state: PastState, lengths: Sequence[int]) -> PastState:
    def shift(values: Tensor) -> Tensor:
        shifted = values.new_zeros(len(values), max(lengths), *values.shape[2:])
        for i, length in enumerate(lengths):
            shifted[i, max(lengths) - length :] = values[i, :length]
        return shifted

    return PastState(shift(state.past_keys), shift(state.past_values))


def _forward(
    model: HookedTransformer, layer: int, prepared: _Prepared, delta: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, "context target"], Float[Tensor, " d_vocab"]]:
    """Log-probabilities of the target's tokens in each context, and of all tokens after the essence's subject."""
    dtype = prepared.residual.dtype
    change = mlp_contribution(model, layer, (prepared.output + delta).to(dtype)) - mlp_contribution(
        model, layer, prepared.output.to(dtype)
    )
    first = prepared.residual[:, :1] + change[:, None]
    residual = torch.cat([first, prepared.residual[:, 1:]], dim=1)
    residual = run_blocks(model, residual, layer + 1, model.cfg.n_layers, past=prepared.past, mask=prepared.mask)
    contexts, targets = prepared.predicting.shape
    needed = residual[torch.arange(contexts)[:, None], prepared.predicting].flatten(0, 1)
    log_probs = logits(model, torch.cat([needed, residual[-1:, 0]])).log_softmax(-1)
    target = prepared.target.repeat(contexts)
    return log_probs[:-1].gather(-1, target[:, None]).view(contexts, targets), log_probs[-1]


def _keep(states: dict[str, Tensor], name: str) -> Hook:
    return lambda value, hook: states.update({name: value})
