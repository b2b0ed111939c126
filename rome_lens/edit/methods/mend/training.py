"""Training a MEND editor on records with paraphrases and unrelated questions (paper section 3.3, appendix C)."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from math import inf
from statistics import fmean

import torch
from tqdm.auto import tqdm

from rome_lens.checking import check_seed, check_whole, checked
from rome_lens.data.records import QuestionRecord
from rome_lens.edit.artifact.edit import finite_matrix
from rome_lens.edit.methods.mend.config import MendConfig
from rome_lens.edit.methods.mend.editor import MendEditor
from rome_lens.edit.methods.mend.examples import Example, example_losses
from rome_lens.edit.methods.mend.state import FACTS, KIND, TrainingState
from rome_lens.errors import EditError
from rome_lens.models import Model, frozen, model_identity
from rome_lens.storage import open_checkpoint, plain

_VALIDATION_LOSS = "validation_loss"


@checked
def train_mend(
    model: Model,
    records: Sequence[QuestionRecord],
    *,
    steps: int,
    validation: Sequence[QuestionRecord] = (),
    config: MendConfig | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    kept_examples: int = 1000,
    progress: bool = True,
) -> MendEditor:
    """Trains an editor: c_edit * (loss of the target after paraphrases) + c_loc * KL on unrelated questions.

    Each record is edited alone, by the editor as it is; the losses of `config.batch_size` records make a step of Adam.
    The model is never changed: the updates go through hooks, row by row. What does not depend on the editor (states
    before the first edited block, the gradient's factors, states of the unedited model) is computed once a record, so
    that a step costs the last blocks alone. The records' order depends on the seed alone; every record is seen once
    before any is seen again.

    Args:
        model: is run, not changed.
        records: to learn from, as `load_zsre(path, target="alt")` gives them. Each has a locality question; one without
            a paraphrase is asked its own prompt.
        steps: of Adam, at most.
        validation: records on which the losses are measured; the editor that does best on them is what comes back, and
            the training ends early (`config.patience`). None: the last one comes back.
        config: the numbers; None: `MendConfig()`.
        seed: of the editor's first matrices and of the records' order.
        out: a folder for this training alone; made if it is missing. Everything is kept in it, about once a minute, and
            a call with the same arguments (`steps` may be more) goes on from there, with the result of an unbroken run.
            It stays when all is done.
        kept_examples: of how many records what was computed is kept in memory (about 0.5 MB each for SmolLM2-135M).
        progress: shows a bar.

    Returns:
        The editor. Its `history` has a row for the start, for each `config.validation_interval` steps and for the end:
        step; the mean edit_loss and locality_loss of the training since the row before; and, with `validation`, the
        same of its records with the total, validation_loss.

    Raises:
        EditError: a weight or a loss is not finite.
        FormatError: the folder was begun with another model, other weights or other arguments, or holds other files or
            a damaged one.
        UnavailableError: another run has the folder open, or its disk is full or may not be written to.
        ValueError: no records, one without a locality question, a bad layer, or a text that does not fit.
    """
    config = MendConfig() if config is None else config
    _check(records, validation, steps)
    check_seed(seed)
    check_whole(least=0, kept_examples=kept_examples)
    editor = MendEditor.untrained(model, config=config, seed=seed)
    for layer in editor.layers:
        finite_matrix(model, layer)
    asked = {"config": plain(config), "seed": seed, "records": _digest(records), "validation": _digest(validation)}
    identity = model_identity(model) | asked if out is not None else {}
    state = TrainingState.begun(editor.network, config)
    both = (*records, *validation)
    prepare = lru_cache(maxsize=kept_examples)(lambda i: Example.of(model, both[i], editor.layers))
    held_out = range(len(records), len(both))
    size = 4 * sum(parameter.nbytes for parameter in editor.network.parameters())  # with Adam's, and the best so far
    with open_checkpoint(out, kind=KIND, identity=identity, facts=FACTS, size=size) as kept, frozen(model):
        state.resume(kept)
        with tqdm(total=steps, initial=state.step, desc="MEND", unit="step", disable=not progress) as bar:
            if not state.history:
                _look(model, state, map(prepare, held_out), config)
            while state.step < steps and not (validation and state.step - state.best_step >= config.patience):
                batch = _order(state.step, len(records), config.batch_size, seed)
                _learn(model, state, [prepare(i) for i in batch], config)
                bar.update()
                if state.step % config.validation_interval == 0 or state.step == steps:
                    _look(model, state, map(prepare, held_out), config)
                    bar.set_postfix(state.history[-1])
                if kept.is_due or state.step == state.history[-1]["step"]:
                    state.save(kept)
    editor.network.load_state_dict(state.best)
    return replace(editor, history=tuple(state.history))


def _learn(model: Model, state: TrainingState, examples: Sequence[Example], config: MendConfig) -> None:
    """One step of Adam; gradients are accumulated over as many passes as memory asks for."""
    state.network.observe([pair for example in examples for pair in example.factors.values()])
    state.optimizer.zero_grad()
    for start in range(0, len(examples), config.edits_per_pass):
        with torch.enable_grad():
            edit, locality = example_losses(model, state.network, examples[start : start + config.edits_per_pass])
            total = (config.edit_weight * edit + config.locality_weight * locality).sum() / len(examples)
        if not total.isfinite():
            raise EditError(
                f"Training failed at step {state.step}: the loss is {total.item()}. Check the model's weights (NaN?), "
                "or lower learning_rate or step_learning_rate. No weight of the model was changed."
            )
        total.backward()
        state.sums[0] += edit.sum().item() / len(examples)
        state.sums[1] += locality.sum().item() / len(examples)
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
    state.optimizer.step()
    state.sums[2] += 1
    state.step += 1


@torch.no_grad()
def _look(model: Model, state: TrainingState, held_out: Iterable[Example], config: MendConfig) -> None:
    """Adds a row to the history, and keeps the editor if it is the best so far."""
    row: dict[str, float | int] = {"step": state.step}
    edit_sum, locality_sum, count = state.sums
    if count:
        row |= {"edit_loss": edit_sum / count, "locality_loss": locality_sum / count}
    state.sums = [0.0, 0.0, 0.0]
    losses = [torch.cat(example_losses(model, state.network, [example])).tolist() for example in held_out]
    if losses:
        edit, locality = map(fmean, zip(*losses, strict=True))
        row |= {"validation_edit_loss": edit, "validation_locality_loss": locality}
        row[_VALIDATION_LOSS] = config.edit_weight * edit + config.locality_weight * locality
    if not losses or row[_VALIDATION_LOSS] < min((past[_VALIDATION_LOSS] for past in state.history), default=inf):
        state.keep_best()
    state.history.append(row)


def _order(step: int, records: int, batch_size: int, seed: int) -> list[int]:
    """The numbers of the records of a step: those of one shuffle of all after the other."""
    places = range(step * batch_size, (step + 1) * batch_size)
    shuffles = {
        epoch: torch.randperm(records, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for epoch in {place // records for place in places}
    }
    return [shuffles[place // records][place % records] for place in places]


def _check(records: Sequence[QuestionRecord], validation: Sequence[QuestionRecord], steps: int) -> None:
    if not records:
        raise ValueError("records is empty, expected one QuestionRecord or more.")
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected a number from 1 on.")
    for record in (*records, *validation):
        if not any(record.locality.values()):
            raise ValueError(
                f"The record {record.case_id} ({record.request.text!r}) has no locality question, which an edit shall "
                "not touch. Leave it out, or give it one."
            )


def _digest(records: Sequence[QuestionRecord]) -> str:
    return hashlib.sha256(repr(list(records)).encode()).hexdigest()
