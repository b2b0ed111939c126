"""Training a MEND editor on records with paraphrases and locality questions (paper section 3.3, appendix C)."""

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
    """Trains an editor on c_edit * (edit loss after paraphrases) + c_loc * (KL on locality questions).

    Each record is edited on its own; the losses of `config.batch_size` records make a step of Adam. The model is never
    changed: edits act through hooks, row by row. What does not depend on the editor (states before the first edited
    block, the gradient's factors, states of the unedited model) is computed once per record, so that a step runs only
    the last blocks. Records are shuffled anew in each epoch; their order depends only on the seed.

    Args:
        records: Training records, such as `load_zsre(path, target="alt")`. Each needs a locality question; the prompt
            itself stands in for a missing paraphrase.
        steps: Maximum number of steps of Adam.
        validation: Validation records. The editor with the least loss on them is returned, and training stops early
            (`config.patience`). Without any, the last editor is returned.
        seed: Seed of the editor's initial matrices and of the order of records.
        out: Folder for a checkpoint, saved about once a minute. `steps` may be larger in a later call.
        kept_examples: Number of records whose precomputed states stay in memory (about 0.5 MB each for SmolLM2-135M).

    Returns:
        The editor. Its `history` has a row for the start, for every `config.validation_interval` steps and for the end:
        step; the mean training edit_loss and locality_loss since the row before; and, with `validation`, the same
        losses on its records, and their weighted sum, validation_loss.

    Raises:
        EditError: a weight or a loss is not finite.
        ValueError: no records, one without a locality question, an invalid layer, or a text that exceeds the model's
            context.
    """
    config = MendConfig() if config is None else config
    _check(records, validation, steps)
    check_seed(seed)
    check_whole(least=0, kept_examples=kept_examples)
    editor = MendEditor.untrained(model, config=config, seed=seed)
    for layer in editor.layers:
        finite_matrix(model, layer)
    settings = {"config": plain(config), "seed": seed, "records": _digest(records), "validation": _digest(validation)}
    identity = model_identity(model) | settings if out is not None else {}
    state = TrainingState.begun(editor.network, config)
    both = (*records, *validation)
    prepare = lru_cache(maxsize=kept_examples)(lambda i: Example.of(model, both[i], editor.layers))
    held_out = range(len(records), len(both))
    size = 4 * sum(parameter.nbytes for parameter in editor.network.parameters())  # with Adam's, and the best so far
    with open_checkpoint(out, kind=KIND, identity=identity, facts=FACTS, size=size) as kept, frozen(model):
        state.resume(kept)
        with tqdm(total=steps, initial=state.step, desc="MEND", unit="step", disable=not progress) as bar:
            if not state.history:
                _validate(model, state, map(prepare, held_out), config)
            while state.step < steps and not (validation and state.step - state.best_step >= config.patience):
                batch = _order(state.step, len(records), config.batch_size, seed)
                _learn(model, state, [prepare(i) for i in batch], config)
                bar.update()
                if state.step % config.validation_interval == 0 or state.step == steps:
                    _validate(model, state, map(prepare, held_out), config)
                    bar.set_postfix(state.history[-1])
                if kept.is_due or state.step == state.history[-1]["step"]:
                    state.save(kept)
    editor.network.load_state_dict(state.best)
    return replace(editor, history=tuple(state.history))


def _learn(model: Model, state: TrainingState, examples: Sequence[Example], config: MendConfig) -> None:
    """One step of Adam; gradients are accumulated over passes of `config.edits_per_pass`."""
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
def _validate(model: Model, state: TrainingState, held_out: Iterable[Example], config: MendConfig) -> None:
    """Adds a row to the history, and keeps the network if it is the best so far."""
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
    if not losses or row[_VALIDATION_LOSS] < min(
        (past.get(_VALIDATION_LOSS, inf) for past in state.history), default=inf
    ):
        state.keep_best()
    state.history.append(row)


def _order(step: int, records: int, batch_size: int, seed: int) -> list[int]:
    """The numbers of the records of a step, from one shuffle of all records after another."""
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
        raise ValueError(f"steps is {steps}, expected at least 1.")
    for record in (*records, *validation):
        if not any(record.locality.values()):
            raise ValueError(
                f"The record {record.case_id} ({record.request.text!r}) has no locality question, on which "
                "the edit is to change nothing. Leave it out, or give it one."
            )


def _digest(records: Sequence[QuestionRecord]) -> str:
    return hashlib.sha256(repr(list(records)).encode()).hexdigest()
