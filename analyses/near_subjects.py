"""What does an edit do to subjects whose names end like the edited one's, and what if some of them are preserved?

CounterFact's neighbours share the object; ROME's damage is at subjects that share the last word. For each edit of a
subject that ships, others of its kind, in the same prompt, are scored before and after: KL(before || after) of the next
token (`near_kl`), the share whose top token stays (`unchanged`), and the share that now says the new object
(`says_new`); beside them p(new object) at the edited prompt (`p_new`). "+list" preserves eight more subjects of the
kind, "+auto" what `preserve="auto"` takes without the scored ones. Scored subjects are never on a list. One search
serves all that need the same.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import plotly.graph_objects as go
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.data.readers.subjects import load_subjects
from rome_lens.edit.methods.near import near_subjects
from rome_lens.edit.methods.preserve import Prompts
from rome_lens.edit.methods.rome import rome_with
from rome_lens.edit.search.value import Value, optimise_value
from rome_lens.models import Model, model_identity
from rome_lens.models.prediction import divergence, next_token_log_probabilities
from rome_lens.models.tokens import tokenize_continuation
from rome_lens.storage import open_journal, plain

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.methods import BATCH, FINETUNING, PRESETS, QUIET, add_method_arguments
from .common.options import kept_covariances, parsed, parser, read_csv, rome_covariance, write_csv
from .common.study_figures import plot_near_subjects

WORDS = {
    "Tower": ("Rome", "Chicago"),
    "University": ("London", "Cairo"),
    "Bridge": ("Berlin", "Tokyo"),
    "Museum": ("Moscow", "Boston"),
    "Airport": ("Madrid", "Sydney"),
    "Cathedral": ("Dublin", "Vienna"),
    "Festival": ("Seattle", "Athens"),
    "Street": ("Paris", "Miami"),
    "Palace": ("Istanbul", "Denver"),
    "Stadium": ("Oslo", "Dallas"),
    "Park": ("Prague", "Detroit"),
    "Hotel": ("Toronto", "Warsaw"),
    "Theatre": ("Lisbon", "Houston"),
    "Church": ("Munich", "Atlanta"),
    "Hospital": ("Milan", "Philadelphia"),
    "Station": ("Brussels", "Portland"),
    "Square": ("Amsterdam", "Phoenix"),
    "River": ("Japan", "Mexico"),
    "Castle": ("China", "Brazil"),
    "Lake": ("Egypt", "Spain"),
    "Prize": ("chemistry", "law"),
    "Smith": ("actor", "lawyer"),
    "Johnson": ("singer", "physicist"),
}
"""The final words of the bank's kinds that are edited, each with new objects for their prompts."""
SCORED, LISTED = 10, 8
METRICS = ("near_kl", "unchanged", "says_new", "p_new")
Variants = Iterator[tuple[str, rl.Edit]]
sampled = cache(rl.edit.sample_contexts)
Config = TypeVar("Config", rl.RomeConfig, rl.MemitConfig, rl.edit.EmmetConfig, rl.edit.AlphaEditConfig)


def questions(count: int) -> list[tuple[rl.EditRequest, list[str], list[str]]]:
    """The edits: a request, the subjects that are scored, and those of "+list"; the words in turn."""
    found = []
    for number in range(count):
        word, turn = list(WORDS)[number % len(WORDS)], number // len(WORDS)
        facts = load_subjects(word)
        facts = facts[turn:] + facts[:turn]
        target = WORDS[word][turn % 2]
        names = [fact.subject for fact in facts[1 : 1 + SCORED + LISTED]]
        # Taken in turn: the first names are the best known.
        listed = names[1 : 2 * LISTED : 2]
        scored = [name for name in names if name not in listed]
        found.append((rl.EditRequest(facts[0].prompt, facts[0].subject, target), scored, listed))
    return found


def measured(model: Model, request: rl.EditRequest, subjects: Sequence[str], edits: Variants) -> list[dict[str, Any]]:
    """A row for each variant and scored subject."""
    prompts = [request.prompt.replace("{}", subject) for subject in subjects]
    first = tokenize_continuation(model, request.text, request.target, space=request.space)
    new = first[0].ids[first[1]]
    asked = [*prompts, request.text]
    before = next_token_log_probabilities(model, asked)
    rows = []
    for variant, edit in edits:
        with edit.applied(model):
            after = next_token_log_probabilities(model, asked)
        kl, top = divergence(before, after), after.argmax(-1)
        for i, subject in enumerate(subjects):
            rows.append(
                {
                    "method": variant,
                    "subject": subject,
                    "near_kl": kl[i].item(),
                    "unchanged": float(top[i] == before[i].argmax()),
                    "says_new": float(top[i] == new),
                    "p_new": after[-1, new].exp().item(),
                    "growth": edit.health.preserve_growth if edit.health else None,
                    "prompt_share": edit.health.prompt_share if edit.health else None,
                }
            )
    return rows


def variants(
    model: Model, options: argparse.Namespace, request: rl.EditRequest, scored: Sequence[str], listed: Sequence[str]
) -> Variants:
    """The edits of one request by each method, without and with preserved subjects."""
    own = [request.prompt.replace("{}", subject) for subject in listed]
    for name in options.methods:
        if name in FINETUNING:
            yield name, rl.edit.finetune(model, request, config=FINETUNING[name], **QUIET)
            continue
        write, covariances = writer(model, options, name, request)
        auto = list(near_subjects(model, request, covariances=covariances, exclude=scored)["prompt"])
        choices: Mapping[str, Prompts | None] = {"": None, " +list": own, " +auto": auto}
        for suffix, preserve in choices.items():
            yield name + suffix, write(preserve=preserve)


def writer(
    model: Model, options: argparse.Namespace, name: str, request: rl.EditRequest
) -> tuple[Callable[..., rl.Edit], Mapping[int, rl.KeyCovariance]]:
    """The method for one request, which searches once, and its covariances."""
    if name in PRESETS:
        covariance, config = rome_covariance(model, options), shortened(model, options, PRESETS[name]())

        @cache
        def value() -> Value:
            return optimise_value(model, covariance.layer, request, config.contexts or (), config, progress=False)

        write = partial(rome_with, lambda *_: value(), model, request, covariance, config, on_unhealthy="ignore")
        return write, {covariance.layer: covariance}
    method, settings = BATCH[name]
    covariances = kept_covariances(model, options.layers, options)
    config = shortened(model, options, settings(layers=options.layers))
    targets = rl.edit.memit_targets(model, [request], layer=max(covariances), config=config, progress=False)
    write = partial(method, model, request, covariances=covariances, config=config, targets=targets, **QUIET)
    return write, covariances


def shortened(model: Model, options: argparse.Namespace, config: Config) -> Config:
    """A method's settings, with as many sampled contexts and steps of the search as were asked for."""
    asked = ((10, options.contexts),) if options.contexts else ()
    lengths = config.context_lengths if options.contexts is None else asked
    contexts = sampled(model, tuple(lengths), seed=config.seed)
    return replace(config, contexts=contexts, steps=config.steps if options.steps is None else options.steps)


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    return {"near_subjects": plot_near_subjects(read_csv(folder / "near_subjects.csv"))}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/near_subjects")
    add_method_arguments(arguments)
    arguments.add_argument("--count", type=int, default=60, help="how many edits")
    arguments.add_argument("--contexts", type=int, help="sampled contexts of the search; the preset's if absent")
    arguments.add_argument("--steps", type=int, help="of the search; the preset's if absent")
    options = parsed(arguments, argv, full={"count": 230})

    model = rl.load_model(options.model)
    asked = {name: plain(getattr(options, name)) for name in ("methods", "layers", "contexts", "steps")}
    identity = model_identity(model) | asked | {"covariance": plain(rome_covariance(model, options))}
    rows = []
    with open_journal(
        options.out / "records", kind="rome_lens near subjects 1", identity=identity, read=dict
    ) as journal:
        for number, (request, scored, listed) in enumerate(tqdm(questions(options.count), desc="edits", unit="edit")):
            row = next((row for row in journal.rows if row["request"] == plain(request)), None)
            if row is None:
                found = measured(model, request, scored, variants(model, options, request, scored, listed))
                row = {"request": plain(request), "rows": found}
                journal.append(row)
            rows += [{"case_id": number, "edited": request.subject, "target": request.target, **r} for r in row["rows"]]
    frame = pd.DataFrame(rows)
    table = summary(frame)
    write_csv(frame, options.out / "near_subjects.csv")
    write_csv(table, options.out / "table.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model)
    print(table.round(3).to_string(index=False))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over edits, of each the mean over its scored subjects, with intervals over edits: see `summarize`."""
    means = frame.groupby(["method", "case_id"], sort=False)[list(METRICS)].mean().reset_index()
    return rl.summarize(means.melt(["case_id", "method"], var_name="metric", value_name="value"))


if __name__ == "__main__":
    main()
