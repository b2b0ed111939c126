"""AnyEdit's search: a state for each window of an answer (Jiang et al. 2025, arXiv 2502.05628)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import torch
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.records import Continuation, EditRequest, target_rows
from rome_lens.edit.search.key import prefix_activations
from rome_lens.edit.search.settings import SearchConfig
from rome_lens.edit.search.suffix import Prompts, prepare_suffixes
from rome_lens.edit.search.targets import check_started, refuse_misfits, search_numbers
from rome_lens.edit.search.value import Value, batched, search_values
from rome_lens.models import Model, extend_past, state_name, tokens_that_fit
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

    The answers' windows of the same number are searched together: a step reads the blocks after the edited one for a
    window's few tokens, so that eight answers take little longer than one. Each gets what it gets alone, up to
    rounding. What comes before a window is read once: its keys and values are kept from window to window.
    """
    rows = answer_rows(model, requests)
    whole = [Prompts((ids[:-1],), (start - 1,), ids[start:], contexts=1, essence=0) for ids, start in rows]
    total = sum(-(-len(prompt.target) // window) for prompt in whole) * config.steps
    found: list[dict[tuple[int, ...], Value]] = [{} for _ in requests]
    first = 0
    with tqdm(total=total, desc="windows", unit="step", disable=not progress) as bar:
        for batch in batched(whole, tokens_that_fit(model, blocks_kept=model.cfg.n_layers)):
            left = list(range(first, first + len(batch)))
            first += len(batch)
            answers = prepare_suffixes(model, layer, batch, "resid")
            for offset in range(0, max(answers.predictions), window):
                goes_on = [length > offset for length in answers.predictions]
                answers, left = answers.only(goes_on), list(compress(left, goes_on))
                part = answers.part(offset, offset + window)
                values = search_values(model, layer, [requests[i] for i in left], part, config, "resid", bar)
                for i, value in zip(left, values, strict=True):
                    ids, start = rows[i]
                    found[i][ids[: start + offset]] = value
                moved = part.residual.clone()
                moved[:, 0] = torch.stack([value.vector for value in values]).to(moved)
                answers = replace(answers, past=extend_past(model, moved, part.past, part.mask))
    return AnyEditTargets(layer, window, search_numbers(config), dict(zip(requests, found, strict=True)))


def answer_rows(model: Model, requests: Sequence[EditRequest]) -> list[TargetRow]:
    """Each bare prompt with its whole answer as tokens, and the position at which the answer starts."""
    return target_rows(model, [Continuation(each.text, each.target, space=each.space) for each in requests])
