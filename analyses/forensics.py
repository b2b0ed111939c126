"""Edits found without the original: in copies edited by several methods, and in copies that nobody edited.

A copy is a model with the edit of one record, or of several in one layer ("3 edits", "10 edits": ROME's edits, added
up), or with its edited matrix rounded to bfloat16. Controls are the model itself and copies that were lightly
fine-tuned on facts as they are. `detect_edits` looks at each as if it knew no other. For each copy: the score of its
most suspicious layer (`score`), whether that is one that was edited (`layer_right`), and whether it is suspicious
(`detected`); how near what is taken out comes to the change (`cosine`); the share of its prompts whose top token is
the unedited model's again once all suspicious parts are taken out (`undone`; `rewritten` is the share that ever had
another), and that of neighbourhood prompts (`neighbours`). The subjects of all records are the list in which the edited
subject is looked for: the share of edited subjects that some suspicious part fits best (`subject_first`), and of new
objects whose first token one names first, or among five (`object_first`, `object_in_five`). `auc` is the share of the
controls that score below the copy.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.edit.artifact.kept import kept_edit
from rome_lens.edit.forensics.components import Component, components_of_layers
from rome_lens.edit.forensics.detecting import SUSPICIOUS, named_parts, scored
from rome_lens.edit.forensics.subjects import keys_of
from rome_lens.edit.forensics.undoing import taken_out
from rome_lens.models import Model, model_identity, output_matrix
from rome_lens.models.labels import token_text
from rome_lens.models.prediction import next_token_log_probabilities
from rome_lens.models.tokens import tokenize_continuation
from rome_lens.storage import open_journal, plain

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.methods import FINETUNING, QUIET, add_method_arguments
from .common.options import (
    add_record_arguments,
    chosen_records,
    listed_records,
    parsed,
    parser,
    read_csv,
    rome_covariance,
    write_csv,
)
from .common.study_figures import plot_forensics
from .near_subjects import Shared, writer

METHODS = ("rome", "rome-reference", "memit", "ft+l")
ROUNDED, UNEDITED, CONTROL = "rome, bfloat16", "unedited", "fine-tuned"
STACKS = {3: 3, 10: 2}  # edits of a copy, and after how many records the next copy begins
NEIGHBOURS = 3  # of each record
TRAINED_ON, TRAINED_STEPS, RATES = 8, 5, (1e-4, 3e-4)  # facts of a control, steps and learning rates of Adam
METRICS = (
    "auc",
    "layer_right",
    "detected",
    "subject_first",
    "object_first",
    "object_in_five",
    "cosine",
    "rewritten",
    "undone",
    "neighbours",
)
Found = Mapping[int, Sequence[Component]]


@dataclass(frozen=True)
class Copy:
    """A copy of the model: of which kind, which among them, the records that were written, and how to make it."""

    kind: str
    name: str
    records: Sequence[rl.EditRecord]
    make: Callable[[], rl.Edit]


def copies(model: Model, options: argparse.Namespace) -> Iterator[Copy]:
    """The copies, the controls last."""
    records, one = chosen_records(options), partial(single, model, options)
    for name in options.methods:
        for record in records[: options.count if name == "rome" else options.others]:
            yield Copy(name, str(record.case_id), [record], partial(one, name, record))
    if "rome" in options.methods:
        for record in records[: options.others]:
            yield Copy(ROUNDED, str(record.case_id), [record], partial(rounded, model, partial(one, "rome", record)))
        for size, step in STACKS.items():
            for start in range(0, len(records) - size + 1, step)[: options.others]:
                chosen = records[start : start + size]
                name = "+".join(str(record.case_id) for record in chosen)
                yield Copy(f"{size} edits", name, chosen, partial(stacked, partial(one, "rome"), chosen))
    for number in range(options.controls):
        yield Copy(CONTROL, str(number), [], partial(trained, model, number))


def single(model: Model, options: argparse.Namespace, name: str, record: rl.EditRecord) -> rl.Edit:
    """The edit of one record by one method, kept in OUT/edits."""

    def make() -> rl.Edit:
        if name in FINETUNING:
            return rl.edit.finetune(model, record.request, config=FINETUNING[name], **QUIET)
        return writer(Shared(model, options), name, record.request)[0]()

    return kept_edit(options.out / "edits" / name / f"{record.case_id}.safetensors", [record.request], make)


def stacked(one: Callable[[rl.EditRecord], rl.Edit], records: Sequence[rl.EditRecord]) -> rl.Edit:
    """The edits of several records, each made on the unedited model, added up."""
    first, *others = [one(record) for record in records]
    return sum(others, first)


def rounded(model: Model, make: Callable[[], rl.Edit]) -> rl.Edit:
    """An edit whose matrices are then rounded to bfloat16."""
    edit, updates = make(), []
    for update in edit.updates:
        before = output_matrix(model, update.layer).float()
        after = (before + update.left @ update.right).bfloat16().float()
        updates.append(rl.edit.Update(update.layer, after - before, torch.eye(before.shape[1])))
    return rl.Edit(tuple(updates), edit.requests)


def trained(model: Model, number: int) -> rl.Edit:
    """All output matrices, lightly fine-tuned on facts as they are."""
    facts = rl.load_builtin_records()[number * TRAINED_ON :][:TRAINED_ON]
    requests = [rl.EditRequest(each.request.prompt, each.request.subject, each.target_true) for each in facts]
    rate = RATES[number % len(RATES)]
    config = rl.edit.FinetuneConfig(layers=list(range(model.cfg.n_layers)), learning_rate=rate, steps=TRAINED_STEPS)
    return rl.edit.finetune(model, requests, config=config, **QUIET)


def components(model: Model, unedited: Found, edit: rl.Edit, count: int) -> list[tuple[Component, int, float]]:
    """What `detect_edits` would look at. Layers that the edit does not touch, and that are beside none that it does,
    are as in the unedited model.
    """
    touched = {update.layer for update in edit.updates}
    layers = [layer for layer in unedited if touched & {layer - 1, layer, layer + 1}]
    found = dict(unedited) | dict(zip(layers, components_of_layers(model, layers, count), strict=True))
    return scored([found[layer][: count if layer in touched else 1] for layer in sorted(found)])


def measured(model: Model, copy: Copy, edit: rl.Edit, unedited: Found) -> dict[str, Any]:
    """What is found in a copy, and what taking it out leaves."""
    prompts = [record.request.text for record in copy.records]
    near = [prompt for record in copy.records for prompt in record.neighborhood_prompts[:NEIGHBOURS]]
    before, layers = _top(model, [*prompts, *near]), {update.layer for update in edit.updates}
    with edit.applied(model):
        found = components(model, unedited, edit, max(1, len(copy.records)))
        if not copy.records:
            return found_in(found)
        first = found[0][0]
        undo = taken_out(model, suspicious(found) or [first], {})
        rewritten = _top(model, prompts) != before[: len(prompts)]
        with undo.applied(model):
            same = (_top(model, [*prompts, *near]) == before).float()
    change = sum((update.left @ update.right for update in edit.updates if update.layer == first.layer), torch.zeros(1))
    taken = sum((-part.left @ part.right for part in undo.updates if part.layer == first.layer), torch.zeros(1))
    return found_in(found) | {
        "norm": max((update.left @ update.right).norm().item() for update in edit.updates),
        "layer_right": float(first.layer in layers),
        "cosine": ((change * taken).sum() / (change.norm() * taken.norm()).clamp(min=1e-9)).item(),
        "rewritten": rewritten.float().mean().item(),
        "undone": same[: len(prompts)].mean().item(),
        "neighbours": same[len(prompts) :].mean().item() if near else None,
    }


def found_in(found: Sequence[tuple[Component, int, float]]) -> dict[str, float]:
    """The highest score, and whether it is suspicious."""
    return {"score": found[0][2], "detected": float(found[0][2] > SUSPICIOUS)}


def suspicious(found: Sequence[tuple[Component, int, float]]) -> list[Component]:
    """The parts whose score is above the threshold."""
    return [component for component, _, score in found if score > SUSPICIOUS]


def named(model: Model, copy: Copy, edit: rl.Edit, unedited: Found, bank: "Bank") -> dict[str, Any]:
    """Which of the new objects and of the subjects are named by the suspicious parts."""
    layers = {update.layer for update in edit.updates}
    keys = (
        {layer: bank.keys(model, layer) for layer in layers} if len(layers) == 1 else None
    )  # the edit does not reach it
    with edit.applied(model):
        parts = suspicious(components(model, unedited, edit, len(copy.records)))
        names = list(named_parts(model, parts, bank.subjects, keys))
    new = [first_token(model, record.request) for record in copy.records]
    edited = [record.request.subject for record in copy.records]
    said, fitting = [objects for objects, _ in names], [[subject for subject, _ in pairs] for _, pairs in names]
    return {
        "objects": new,
        "named": said,
        "subject_first": _share(edited, {subjects[0] for subjects in fitting}),
        "stands_out": names[0][1][0][1] if names else None,
        "object_first": _share(new, {tokens[0] for tokens in said}),
        "object_in_five": _share(new, {token for tokens in said for token in tokens}),
    }


@dataclass(frozen=True)
class Bank:
    """The subjects that are looked for, and their keys in the unedited model."""

    subjects: Sequence[str]
    known: dict[int, torch.Tensor] = field(default_factory=dict)

    def keys(self, model: Model, layer: int) -> torch.Tensor:
        """The keys in a layer; computed once."""
        if layer not in self.known:
            self.known[layer] = keys_of(model, layer, self.subjects)
        return self.known[layer]


def first_token(model: Model, request: rl.EditRequest) -> str:
    """The first token of a request's target, as text."""
    text, start = tokenize_continuation(model, request.text, request.target, space=request.space)
    return token_text(model, text.ids[start])


def _share(sought: Sequence[str], among: set[str]) -> float:
    return sum(each in among for each in sought) / len(sought)


def _top(model: Model, prompts: Sequence[str]) -> torch.Tensor:
    return next_token_log_probabilities(model, prompts).argmax(-1)


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    copies = read_csv(folder / "copies.csv").fillna({"copy": ""})  # the model itself is no copy
    return {"forensics": plot_forensics(copies, SUSPICIOUS)}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/forensics")
    add_record_arguments(arguments, count=12)
    add_method_arguments(arguments, default=METHODS, choices=METHODS)
    arguments.add_argument("--others", type=int, default=6, help="how many copies of each kind but rome, at most")
    arguments.add_argument("--controls", type=int, default=6, help="how many fine-tuned controls")
    arguments.add_argument("--contexts", type=int, default=5, help="sampled contexts of the search")
    arguments.add_argument("--steps", type=int, help="of the search; the preset's if absent")
    options = parsed(arguments, argv, full={"count": 60, "others": 60})

    model = rl.load_model(options.model)
    layers = range(model.cfg.n_layers - 1)
    unedited = dict(zip(layers, tqdm(components_of_layers(model, layers, 1), "unedited", len(layers)), strict=True))
    asked = {name: plain(getattr(options, name)) for name in ("layers", "contexts", "steps")}
    identity = model_identity(model) | asked | {"covariance": plain(rome_covariance(model, options))}
    rows = [{"kind": UNEDITED, "copy": "", **found_in(scored(list(unedited.values())))}]
    frames = []
    everything = argparse.Namespace(**vars(options) | {"case_ids": None, "skip": 0})
    bank = Bank(sorted({record.request.subject for record in listed_records(everything)}))
    looks: dict[str, Callable[..., dict[str, Any]]] = {"records": measured, "names": partial(named, bank=bank)}
    for name, look in looks.items():
        with open_journal(options.out / name, kind="rome_lens forensics 2", identity=identity, read=dict) as journal:
            done = {(row["kind"], row["copy"]): row for row in journal.rows}
            for copy in tqdm(list(copies(model, options)), name, unit="copy"):
                row = done.get((copy.kind, copy.name))
                if row is None and (copy.records or name == "records"):
                    row = {"kind": copy.kind, "copy": copy.name, **look(model, copy, copy.make(), unedited)}
                    journal.append(row)
                rows += [row] if row else []
        frames.append(pd.DataFrame(rows))
        rows = []
    frame = frames[0].merge(frames[1], on=["kind", "copy"], how="left")
    controls = frame[frame["kind"].isin([UNEDITED, CONTROL])]["score"]
    frame["auc"] = [float((controls < score).mean()) for score in frame["score"]]
    frame.loc[controls.index, "auc"] = None
    long = frame.melt(["kind", "copy"], list(METRICS), var_name="metric").dropna(subset="value")
    table = rl.summarize(long.rename(columns={"kind": "method", "copy": "case_id"}))
    write_csv(frame, options.out / "copies.csv")
    write_csv(table, options.out / "table.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
