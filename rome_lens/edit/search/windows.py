"""AnyEdit's search: a state for each window of an answer (Jiang et al. 2025, arXiv 2502.05628)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.records import Continuation, EditRequest, target_rows
from rome_lens.edit.search.key import prefix_activations
from rome_lens.edit.search.settings import SearchConfig
from rome_lens.edit.search.suffix import Prompts
from rome_lens.edit.search.targets import check_started, refuse_misfits, search_numbers
from rome_lens.edit.search.value import Value, batched, search_values
from rome_lens.models import Hook, Model, state_name, tokens_that_fit
from rome_lens.models.teacher_forcing import TargetRow

WindowValues = Mapping[tuple[int, ...], Value]
"""The state of each window of one answer, by the tokens up to the position at which it stands."""


@checked
@dataclass(frozen=True, eq=False)
class AnyEditTargets:
    """The states that give several answers, window by window, and how they were found.

    Attributes:
        layer: block after which they replace the residual stream: the last one to be edited.
        window: tokens of a window.
        search: hyper-parameters of the search, as in SearchConfig.
        values: for each request, the state of each window, by the tokens up to the position at which it stands.
    """

    layer: int
    window: int
    search: Mapping[str, Any]
    values: Mapping[EditRequest, WindowValues] = field(repr=False)

    def of(
        self, model: Model, requests: Sequence[EditRequest], layer: int, window: int, search: SearchConfig
    ) -> dict[tuple[int, ...], Value]:
        """The states of some of the requests.

        Raises:
            EditError: they were found on another model, or on other weights.
            ValueError: they were found for other requests, another layer, or with other numbers.
        """
        wrong = [f"there are none for {each.text!r:.80}" for each in requests if each not in self.values][:1]
        if (self.layer, self.window) != (layer, window):
            wrong.append(
                f"they belong after layer {self.layer}, in windows of {self.window} tokens, not {layer} and {window}"
            )
        refuse_misfits(wrong, self.search, search, made_by="anyedit_targets")
        found = {place: value for each in requests for place, value in self.values[each].items()}
        rows = [max(self.values[each], key=len) for each in requests]
        states = prefix_activations(model, state_name("resid", layer), layer, rows)
        check_started(model, layer, torch.stack([states[place] for place in found]), list(found.values()))
        return found


def window_values(
    model: Model,
    layer: int,
    requests: Sequence[EditRequest],
    config: SearchConfig,
    window: int,
    *,
    progress: bool = True,
) -> AnyEditTargets:
    """For each window of each answer, the state after a block with which the model predicts it, found with those of the
    windows before in place.

    The answers' windows of the same number are searched together: a step reads the whole model for a window's few
    tokens, so that eight answers take little longer than one. Each gets what it gets alone, up to rounding.
    """
    rows = answer_rows(model, requests)
    longest = max(len(ids) - start for ids, start in rows)
    total = sum(-(-(len(ids) - start) // window) for ids, start in rows) * config.steps
    found: list[dict[tuple[int, ...], Value]] = [{} for _ in requests]
    moves: list[dict[int, Tensor]] = [{} for _ in requests]
    budget = tokens_that_fit(model, blocks_kept=model.cfg.n_layers)
    with tqdm(total=total, desc="windows", unit="step", disable=not progress) as bar:
        for offset in range(0, longest, window):
            left = [i for i, (ids, start) in enumerate(rows) if start + offset < len(ids)]
            prompts = [_window(*rows[i], offset, window) for i in left]
            for batch in batched(prompts, budget):
                here, left = left[: len(batch)], left[len(batch) :]
                hooks = [(state_name("resid", layer), _adding([moves[i] for i in here]))]
                asked = [requests[i] for i in here]
                values = search_values(model, layer, asked, batch, config, "resid", bar, hooks=hooks)
                for i, prompt, value in zip(here, batch, values, strict=True):
                    (position,) = prompt.subject
                    found[i][prompt.rows[0][: position + 1]] = value
                    moves[i][position] = value.vector - value.initial
    return AnyEditTargets(layer, window, search_numbers(config), dict(zip(requests, found, strict=True)))


def answer_rows(model: Model, requests: Sequence[EditRequest]) -> list[TargetRow]:
    """Each bare prompt with its whole answer as tokens, and the position at which the answer starts."""
    return target_rows(model, [Continuation(each.text, each.target, space=each.space) for each in requests])


def _window(ids: tuple[int, ...], start: int, offset: int, window: int) -> Prompts:
    first = start + offset
    end = min(first + window, len(ids))
    return Prompts((ids[: end - 1],), (first - 1,), ids[first:end], contexts=1, essence=0)


def _adding(moves: Sequence[Mapping[int, Float[Tensor, " d_model"]]]) -> Hook:
    """A hook that adds vectors to the states of rows, each at its position, where the rows are read so far."""

    def add(state: Float[Tensor, "row pos d_model"], hook: object) -> Float[Tensor, "row pos d_model"]:
        state = state.clone()
        for row, here in enumerate(moves):
            for position, move in here.items():
                state[row, position : position + 1] += move.to(state)
        return state

    return add
