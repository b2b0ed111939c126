"""Edits found without the original: is the edited layer named, and does taking the part out bring the old answer back?

Each record is written by ROME, one at a time, and `detect_edits` looks at the edited model as if it knew no other. For
each edit: the share of the unedited model's layers that score below the edited layer (`auc`, whose mean over edits is
the area under the ROC curve of layers), whether the edited layer comes first (`layer_right`), whether it is suspicious
(`detected`), how near the estimate comes to the update (`cosine`), whether the prompt's top token is the unedited
model's again once the part is taken out (`undone`; `rewritten` tells whether it ever was another), and the share of
neighbourhood prompts whose top token is then the unedited model's (`neighbours`); and whether the new object's first
token is named first, or among five (`object_first`, `object_in_five`). Beside each: the highest score of the
unedited model (`control.csv`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.models import Model, model_identity
from rome_lens.models.labels import token_text
from rome_lens.models.prediction import next_token_log_probabilities
from rome_lens.models.tokens import tokenize_continuation
from rome_lens.storage import open_journal, plain

from .common.kept_edits import kept_edits
from .common.manifest import write_manifest
from .common.methods import PRESETS, add_method_arguments
from .common.options import add_record_arguments, chosen_records, parsed, parser, rome_covariance, write_csv

METRICS = (
    "auc",
    "layer_right",
    "detected",
    "object_first",
    "object_in_five",
    "cosine",
    "rewritten",
    "undone",
    "neighbours",
)


def measured(model: Model, record: rl.EditRecord, edit: rl.Edit, control: pd.DataFrame) -> dict[str, Any]:
    """What is found of one edit, and what taking it out leaves; `control` is what is found in the unedited model."""
    asked = [record.request.text, *record.neighborhood_prompts]
    before, layer = _top(model, asked), edit.updates[0].layer
    with edit.applied(model):
        found = rl.edit.detect_edits(model, progress=False)
        row = found[found["layer"] == layer].iloc[0]
        undo = rl.edit.undo_blindly(model, found.iloc[0])
        rewritten = _top(model, asked) != before
        with undo.applied(model):
            same = (_top(model, asked) == before).float()
    text, start = tokenize_continuation(model, record.request.text, record.request.target)
    new, named = token_text(model, text.ids[start]), found.iloc[0]["objects"]
    change = edit.updates[0].left @ edit.updates[0].right
    taken = -undo.updates[0].left @ undo.updates[0].right if undo.updates[0].layer == layer else torch.zeros(1)
    cosine = (change * taken).sum() / (change.norm() * taken.norm()).clamp(min=1e-9)
    others = control[control["layer"] != layer]["score"]
    return {
        "update_norm": change.norm().item(),
        "score": row["score"],
        "auc": float((others < row["score"]).mean()),
        "layer_right": float(found.iloc[0]["layer"] == layer),
        "detected": float(row["suspicious"]),
        "object_first": float(new in named[:1]),
        "object_in_five": float(new in named),
        "cosine": cosine.item(),
        "rewritten": float(rewritten[0]),
        "undone": same[0].item(),
        "neighbours": same[1:].mean().item(),
    }


def _top(model: Model, prompts: Sequence[str]) -> torch.Tensor:
    return next_token_log_probabilities(model, prompts).argmax(-1)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/forensics")
    add_record_arguments(arguments, count=6)
    add_method_arguments(arguments, choices=list(PRESETS))
    options = parsed(arguments, argv, full={"count": 60})

    model = rl.load_model(options.model)
    records, covariance = chosen_records(options), rome_covariance(model, options)
    control = rl.edit.detect_edits(model)
    identity = model_identity(model) | {"covariance": plain(covariance), "control": control.to_json(double_precision=6)}
    with open_journal(options.out / "records", kind="rome_lens forensics 1", identity=identity, read=dict) as journal:
        rows = list(journal.rows)
        done = {(row["method"], row["case_id"]) for row in rows}
        for name in options.methods:
            config = PRESETS[name]()
            config = replace(config, contexts=rl.edit.sample_contexts(model, config.context_lengths, seed=config.seed))
            with kept_edits(model, config, options.out / "edits" / name, covariance) as edit_of:
                for record in tqdm(records, desc=name, unit="edit"):
                    if (name, record.case_id) not in done:
                        figures = measured(model, record, edit_of(record), control)
                        rows.append({"method": name, "case_id": record.case_id, **figures})
                        journal.append(rows[-1])
    frame = pd.DataFrame(rows)
    long = frame.melt(["method", "case_id"], list(METRICS), var_name="metric", value_name="value")
    table = rl.summarize(long)
    write_csv(frame, options.out / "edits.csv")
    write_csv(control, options.out / "control.csv")
    write_csv(table, options.out / "table.csv")
    write_manifest(options, model)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
