"""Edits of records in a folder, which analyses share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import rome_lens as rl
from rome_lens.edit.artifact.kept import kept_edit
from rome_lens.models import Model, model_identity
from rome_lens.storage import open_journal, plain


@contextmanager
def kept_edits(
    model: Model, config: rl.RomeConfig, folder: Path, covariance: rl.KeyCovariance
) -> Iterator[Callable[[rl.EditRecord], rl.Edit]]:
    """Gives a function from a record to its edit: the one in the folder, or else one that is made and put there.

    Raises:
        FormatError: the folder was begun with another model, other weights, another configuration or covariance, or
            holds the edit of another request under the record's number.
    """
    make = partial(rl.rome, model, covariance=covariance, config=config, on_unhealthy="ignore", progress=False)
    with open_journal(folder, kind="rome_lens edits 1", identity=made_with(model, config, covariance), read=dict):
        yield lambda record: kept_edit(
            folder / f"{record.case_id}.safetensors", [record.request], partial(make, record.request)
        )


def made_with(model: Model, config: rl.RomeConfig, covariance: rl.KeyCovariance) -> dict[str, Any]:
    """What ROME's edits depend on besides their requests."""
    return model_identity(model) | {"config": plain(config), "covariance": plain(covariance)}
