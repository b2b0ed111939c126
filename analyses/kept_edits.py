"""Edits of records in a folder, which analyses share."""

from pathlib import Path

import rome_lens as rl
from rome_lens.models import Model


def kept_edit(
    model: Model,
    record: rl.EditRecord,
    config: rl.RomeConfig,
    folder: Path,
    covariance: rl.KeyCovariance,
) -> rl.Edit:
    """The record's edit, from the folder if it is there; else it is made and put there.

    Raises:
        ValueError: what is there under the record's number is the edit of another request.
    """
    path = folder / f"{record.case_id}.safetensors"
    if not path.exists():
        edit = rl.rome(
            model, record.request, covariance=covariance, config=config, on_unhealthy="ignore", progress=False
        )
        edit.save(path)
    edit = rl.Edit.load(path)
    if edit.requests != (record.request,):
        raise ValueError(
            f"{path} holds an edit for {edit.requests[0].text!r} -> {edit.requests[0].target!r}, expected one for "
            f"{record.request.text!r} -> {record.request.target!r}. Choose another folder."
        )
    return edit
