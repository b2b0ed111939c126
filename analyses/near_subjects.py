"""What does an edit do to subjects whose names end like the edited one's, and what if some of them are preserved?

CounterFact's neighbours share the object; ROME's damage is at subjects that share the last word. For each edit of a
subject that ships, others of its kind, in the same prompt, are scored before and after: KL(before || after) of the next
token (`near_kl`), the share whose top token stays (`unchanged`), and the share that now says the new object
(`says_new`); beside them p(new object) at the edited prompt (`p_new`), the processor's seconds for search and edit, and
how strongly the method's plain edit acts on the prompt, in parts of its own prompt (`reach`). "+list" preserves eight
more subjects of the kind, "+auto" what `preserve="auto"` takes without the scored ones. Scored subjects are never on a
list. One search serves all that need the same.

With --records, CounterFact's records are edited instead, and the others are subjects that share the last token, often
no more than a part of a word; ES, PS and NS stand beside. Records with too few such subjects are left out.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import plotly.graph_objects as go
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.data.readers.subjects import load_subjects
from rome_lens.edit.methods.near import near_subjects, same_name
from rome_lens.edit.methods.preserve import Prompts
from rome_lens.edit.methods.rome import rome_with
from rome_lens.edit.search.targets import search_numbers
from rome_lens.edit.search.value import optimise_value
from rome_lens.models import Model, model_identity
from rome_lens.models.prediction import divergence, next_token_log_probabilities
from rome_lens.models.tokens import tokenize, tokenize_continuation
from rome_lens.storage import open_journal, plain

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.methods import BATCH, FINETUNING, PRESETS, QUIET, add_method_arguments, add_search_arguments, shortened
from .common.options import kept_covariances, parsed, parser, read_csv, rome_covariance, write_csv
from .common.study_figures import plot_near_subjects, plot_reach

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
SCORED_OF_RECORDS = 5
METRICS = ("near_kl", "unchanged", "says_new", "p_new", "seconds", "ES", "PS", "NS")
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """An edit, the subjects that are scored, and those of "+list"; of a record, also that."""

    request: rl.EditRequest
    scored: list[str]
    listed: list[str]
    record: rl.EditRecord | None = None


@dataclass(frozen=True)
class Variant:
    """An edit of a case, and the processor's seconds for all of it, its search included; None: no edit."""

    name: str
    edit: rl.Edit | None
    seconds: float


def of_words(count: int) -> list[Case]:
    """Edits of subjects that ship; the words in turn."""
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
        found.append(Case(rl.EditRequest(facts[0].prompt, facts[0].subject, target), scored, listed))
    return found


def of_records(model: Model, records: Sequence[rl.EditRecord], count: int) -> list[Case]:
    """Edits of records, with subjects that ship and of other records that share the last token; in turn, the two
    lists.
    """
    names = dict.fromkeys([*(each.request.subject for each in records), *(each.subject for each in load_subjects())])
    by_token: dict[int, list[str]] = {}
    for name in names:
        by_token.setdefault(tokenize(model, f"of {name}").ids[-1], []).append(name)
    found = []
    for record in records:
        subject = record.request.subject
        alike = [name for name in by_token[tokenize(model, f"of {subject}").ids[-1]] if not same_name(name, subject)]
        if len(alike) < SCORED_OF_RECORDS + LISTED:
            continue
        scored = alike[: 2 * SCORED_OF_RECORDS : 2]
        listed = [name for name in alike if name not in scored][:LISTED]
        found.append(Case(record.request, scored, listed, record))
    return found[:count]


def measured(model: Model, case: Case, variants: Iterator[Variant]) -> list[dict[str, Any]]:
    """A row for each variant and scored subject."""
    request = case.request
    prompts = [request.prompt.replace("{}", subject) for subject in case.scored]
    first = tokenize_continuation(model, request.text, request.target, space=request.space)
    new = first[0].ids[first[1]]
    asked = [*prompts, request.text]
    before = next_token_log_probabilities(model, asked)
    rows = []
    reach: dict[str, float] = {}
    for variant in variants:
        edit, health = variant.edit, variant.edit and variant.edit.health
        if edit is not None and "preserve" not in edit.config:
            forecast = rl.evaluate.strongest_bleed_over(rl.evaluate.forecast_bleed_over(model, edit, prompts))
            reach = {str(prompt): size for prompt, size in forecast.groupby("prompt")["size"].max().items()}
        scores: dict[str, Any] = {}
        with edit.applied(model) if edit else nullcontext():
            after = next_token_log_probabilities(model, asked)
            if case.record:
                found = rl.evaluate.score_record(model, case.record)
                scores = {metric: value for metric, value in found.items() if metric in METRICS}
        kl, top = divergence(before, after), after.argmax(-1)
        for i, subject in enumerate(case.scored):
            rows.append(
                {
                    "method": variant.name,
                    "subject": subject,
                    "near_kl": kl[i].item(),
                    "unchanged": float(top[i] == before[i].argmax()),
                    "says_new": float(top[i] == new),
                    "p_new": after[-1, new].exp().item(),
                    "seconds": variant.seconds,
                    "reach": reach.get(prompts[i]),
                    "growth": health and health.preserve_growth,
                    **scores,
                }
            )
    return rows


@dataclass
class Shared:
    """What the methods have in common: covariances, and what is computed once for a case."""

    model: Model
    options: argparse.Namespace
    found: dict[str, tuple[Any, float]] = field(default_factory=dict)

    @cached_property
    def rome(self) -> dict[int, rl.KeyCovariance]:
        covariance = rome_covariance(self.model, self.options)
        return {covariance.layer: covariance}

    @cached_property
    def batch(self) -> dict[int, rl.KeyCovariance]:
        return kept_covariances(self.model, self.options.layers, self.options)

    def once(self, name: str, work: Callable[[], T]) -> tuple[T, float]:
        """What the work gives, and the processor's seconds that it took when it was done."""
        if name not in self.found:
            self.found[name] = timed(work)
        return self.found[name]


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def variants(shared: Shared, case: Case) -> Iterator[Variant]:
    """No edit, and those by each method, without and with preserved subjects."""
    model, request = shared.model, case.request
    own = [request.prompt.replace("{}", subject) for subject in case.listed]
    shared.found.clear()
    yield Variant("unedited", None, 0.0)
    for name in shared.options.methods:
        if name in FINETUNING:
            yield Variant(name, *timed(partial(rl.edit.finetune, model, request, config=FINETUNING[name], **QUIET)))
            continue
        write, covariances, searching = writer(shared, name, request)
        near = partial(near_subjects, model, request, covariances=covariances, exclude=case.scored)
        found, finding = shared.once(f"near {sorted(covariances)}", near)
        choices: dict[str, tuple[Prompts | None, float]] = {"": (None, 0), " +list": (own, 0)}
        choices[" +auto"] = list(found["prompt"]), finding
        for suffix, (preserve, before) in choices.items():
            edit, writing = timed(partial(write, preserve=preserve))
            yield Variant(name + suffix, edit, searching + before + writing)


def writer(
    shared: Shared, name: str, request: rl.EditRequest
) -> tuple[Callable[..., rl.Edit], dict[int, rl.KeyCovariance], float]:
    """The method for one request, its covariances, and the seconds of its search, which is done."""
    model, options = shared.model, shared.options
    if name in PRESETS:
        ((layer, covariance),) = shared.rome.items()
        rome = shortened(model, options, PRESETS[name]())
        search = partial(optimise_value, model, layer, request, rome.contexts or (), rome, progress=False)
        value, seconds = shared.once(f"value {search_numbers(rome)} {rome.contexts}", search)
        write = partial(rome_with, lambda *_: value, model, request, covariance, rome, on_unhealthy="ignore")
        return write, shared.rome, seconds
    method, settings = BATCH[name]
    config = shortened(model, options, settings(layers=options.layers))
    targets, seconds = shared.once(
        f"targets {search_numbers(config)}",
        partial(rl.edit.memit_targets, model, [request], layer=max(shared.batch), config=config, progress=False),
    )
    return (
        partial(method, model, request, covariances=shared.batch, config=config, targets=targets, **QUIET),
        shared.batch,
        seconds,
    )


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    frame = read_csv(folder / "near_subjects.csv")
    return {"near_subjects": plot_near_subjects(frame), "reach": plot_reach(frame)}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/near_subjects")
    add_method_arguments(arguments)
    arguments.add_argument("--records", type=Path, help="a file in CounterFact's schema; subjects that ship if absent")
    arguments.add_argument("--count", type=int, default=60, help="how many edits")
    add_search_arguments(arguments)
    options = parsed(arguments, argv, full={"count": 230})

    model = rl.load_model(options.model)
    shared = Shared(model, options)
    cases = of_words(options.count)
    if options.records:
        cases = of_records(model, rl.load_counterfact(options.records), options.count)
    asked = {name: plain(getattr(options, name)) for name in ("methods", "layers", "contexts", "steps")}
    identity = model_identity(model) | asked | {"covariance": plain(*shared.rome.values())}
    if {*options.methods} & {*BATCH}:
        identity |= {"covariances": plain(shared.batch)}
    rows = []
    with open_journal(
        options.out / "records", kind="rome_lens near subjects 2", identity=identity, read=dict
    ) as journal:
        for number, case in enumerate(tqdm(cases, desc="edits", unit="edit")):
            row = next((row for row in journal.rows if row["case"] == plain(case)), None)
            if row is None:
                row = {"case": plain(case), "rows": measured(model, case, variants(shared, case))}
                journal.append(row)
            known = {"case_id": number, "edited": case.request.subject, "target": case.request.target}
            rows += [known | found for found in row["rows"]]
    frame = pd.DataFrame(rows)
    table = summary(frame)
    write_csv(frame, options.out / "near_subjects.csv")
    write_csv(table, options.out / "table.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model)
    print(table.round(3).to_string(index=False))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over edits, of each the mean over its scored subjects, with intervals over edits: see `summarize`."""
    metrics = [metric for metric in METRICS if metric in frame]
    means = frame.groupby(["method", "case_id"], sort=False)[metrics].mean().reset_index()
    return rl.summarize(means.melt(["case_id", "method"], var_name="metric", value_name="value"))


if __name__ == "__main__":
    main()
