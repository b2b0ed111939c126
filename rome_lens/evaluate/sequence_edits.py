"""The edits of a sequence: made batch by batch, or read from its folder; and all of them as one."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from rome_lens.checking import check_returned
from rome_lens.data.records import EditRequest
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.artifact.kept import kept_edit
from rome_lens.edit.artifact.update import least_rank
from rome_lens.edit.methods.batch import EditMemory
from rome_lens.edit.methods.memory import FactMemory
from rome_lens.evaluate.measuring import Method, as_asked
from rome_lens.models import Model


class SequenceEdits:
    """Makes the edits of a sequence in turn, each on the model as edited so far.

    A method with the argument `memory` gets one that goes from batch to batch. In a folder, the memory after a batch is
    there before the edit of that batch is, and until the edit of the next one is: a killed run goes on with it.
    """

    def __init__(self, model: Model, method: Method, folder: Path | None, *, batch: int):
        self._folder = folder
        self._batch = batch
        self._method, self._model = method, model
        self._memory = EditMemory() if "memory" in signature(method).parameters else None

    def get(self, number: int, requests: Sequence[EditRequest]) -> Edit | FactMemory:
        """The edit of a batch, counted from 1. Raises what the method raises, and FormatError as `kept_edit`."""
        if self._folder is None:
            return self._made(number, requests)
        path = self._folder / f"{number:05}.safetensors"
        edit = kept_edit(path, requests, partial(self._made, number, requests))
        if (before := self._memory_path(number - 1)).is_file():
            before.unlink()
        return edit

    def _made(self, number: int, requests: Sequence[EditRequest]) -> Edit | FactMemory:
        asked = as_asked(requests) if self._batch == 1 else list(requests)
        if self._memory is None:
            return self._make(asked)
        if self._folder is not None and number > 1 and not self._memory.method:
            self._memory = EditMemory.load(self._memory_path(number - 1))
        edit = self._make(asked, memory=self._memory)
        if self._folder is not None:
            self._memory.save(self._memory_path(number), overwrite=True)
        return edit

    def _make(self, asked: Any, **memory: EditMemory) -> Edit | FactMemory:
        made: Edit | FactMemory = check_returned(
            "The method", self._method(self._model, asked, **memory), Edit | FactMemory
        )
        return made

    def _memory_path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"memory-{number:05}.safetensors"


def as_one(made: Sequence[Edit | FactMemory]) -> Edit | None:
    """What the edits add together, of no more rank than the matrices have. None: there are none."""
    edits = [edit for edit in made if isinstance(edit, Edit)]
    if not edits:
        return None
    first = edits[0]
    alike = all(edit.config == first.config for edit in edits)
    whole = Edit(
        tuple(update for edit in edits for update in edit.updates),
        tuple(request for edit in edits for request in edit.requests),
        method=first.method,
        model=first.model,
        architecture=first.architecture,
        family=first.family,
        config=first.config if alike else {"parts": [dict(edit.config) for edit in edits]},
    )
    updates = []
    for update in whole.updates:
        left, right = least_rank(update.left, update.right)
        updates.append(replace(update, left=left, right=right))
    return replace(whole, updates=tuple(updates))
