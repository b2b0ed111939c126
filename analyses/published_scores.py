"""Published data sets, each with the scores that its authors define: which methods pass which test, with intervals.

What a file is, is told from its fields. Each record is edited alone by each method (MQuAKE's requests of a case
together; with --together, those of so many cases) and scored before and after, by the data set's own scorer and, where
it has none, by protocols. HalluEditBench is about what a model gets wrong: records whose question it answers already
are left out of the table. A chat model is asked in its template where the data set is about chats alone (robustness).
table.csv has a row for each file, protocol, method and metric, with 95 % intervals over records; by_method.csv has the
methods side by side. Rows are kept as they are measured, so that a run that was stopped goes on where it was.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import rome_lens as rl
from rome_lens.edit.methods.requests import as_requests
from rome_lens.evaluate.measuring import BASE, Method, requests_of
from rome_lens.models import Model

from .common.manifest import write_manifest
from .common.methods import BATCH, FINETUNING, add_method_arguments, chosen_methods
from .common.options import add_run_arguments, parsed, parser, run_options, write_csv


@dataclass(frozen=True)
class Ways:
    """How a data set is scored: protocols, and its own scorer with what that compares with."""

    protocols: Sequence[str] = ()
    score: Callable[..., Any] | None = None
    before: Callable[..., Any] | None = None


HALLU = "HalluEditBench"
TOKENS = Ways(("teacher_forced", "generated"))
OWN = {
    "CounterFact": Ways(("probability",)),
    "EVOKE": Ways(score=rl.evaluate.score_evoke),
    "EVOKE, subject specificity": Ways(score=rl.evaluate.score_evoke),
    "MQuAKE": Ways(score=rl.evaluate.score_mquake),
    "RippleEdits": Ways(score=rl.evaluate.score_ripple, before=rl.evaluate.ripple_conditions),
    HALLU: Ways(("generated_contains",), rl.evaluate.score_robustness),
    "zsRE": Ways(score=rl.evaluate.score_zsre, before=rl.evaluate.locality_predictions),
    "KnowEdit": Ways(score=rl.evaluate.score_knowedit, before=rl.evaluate.locality_predictions),
    "KnowEdit's WikiBio": Ways(score=rl.evaluate.score_knowedit, before=rl.evaluate.locality_predictions),
    "KnowEdit's ConvSent": Ways(score=rl.evaluate.score_sentiment, before=rl.evaluate.sentiment_log_likelihood),
    "MRLF-Bench": Ways(score=rl.evaluate.score_mrlf),
    "MRLF-Bench, input and target": Ways(score=rl.evaluate.score_mrlf),
}
"""By schema; all others are asked for tokens, and for what the model writes (`TOKENS`)."""


@dataclass
class Together:
    """A method that writes the requests of several records at once, whichever of them is asked for."""

    method: Method
    chunks: tuple[tuple[rl.EditRequest, ...], ...]
    last: dict[int, rl.Edit | rl.FactMemory] = field(default_factory=dict, compare=False)

    def __call__(self, model: Model, request: Any) -> rl.Edit | rl.FactMemory:
        number = next(i for i, chunk in enumerate(self.chunks) if set(as_requests(request)) <= set(chunk))
        if number not in self.last:
            self.last = {number: self.method(model, list(self.chunks[number]))}  # type: ignore[arg-type]
        return self.last[number]


def chunks(records: Sequence[Any], together: int) -> tuple[tuple[rl.EditRequest, ...], ...]:
    """The requests of so many records at a time, each once."""
    parts = [records[start : start + together] for start in range(0, len(records), together)]
    return tuple(tuple(dict.fromkeys(one for record in part for one in requests_of(record))) for part in parts)


def table_of(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each protocol, method and metric: n, mean, low, high."""
    summary, rows = rl.summarize(scores), []
    for row in summary.to_dict("records"):
        for metric in dict.fromkeys(scores["metric"]):
            if metric and pd.notna(row.get(metric)):
                numbers = {"mean": row[metric], "low": row[f"{metric}_low"], "high": row[f"{metric}_high"]}
                rows.append({name: row[name] for name in ("protocol", "method", "n")} | {"metric": metric} | numbers)
    return pd.DataFrame(rows)


def by_method(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column for each method, followed by the ends of its interval."""
    keys, ends = ["data", "schema", "protocol", "metric", "n"], {"mean": "", "low": "_low", "high": "_high"}
    wide = table.pivot(index=keys, columns="method", values=list(ends))
    columns = {
        f"{method}{end}": wide[kind, method] for method in table["method"].unique() for kind, end in ends.items()
    }
    return pd.DataFrame(columns).reindex(pd.MultiIndex.from_frame(table[keys].drop_duplicates())).reset_index()


def wrong_before(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of the records that the unedited model answers wrongly."""
    asked = scores[(scores["method"] == BASE) & (scores["metric"] == "efficacy")]
    return scores[scores["case_id"].isin(asked.loc[asked["value"] == 0, "case_id"])]


def check_methods(path: Path, records: Iterable[Any], names: Sequence[str], together: int) -> None:
    """Stops unless the methods can write as many requests at once as a record has."""
    single = [name for name in names if name not in (*BATCH, *FINETUNING)]
    if single and (together > 1 or any(len(requests_of(record)) > 1 for record in records)):
        raise SystemExit(
            f"{', '.join(single)} write one request at once, but {path} has records with several, or --together is "
            f"above 1. Choose among {', '.join((*BATCH, *FINETUNING))}."
        )


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/published_scores")
    arguments.add_argument("--records", type=Path, nargs="+", required=True, help="files of records, of any schema")
    arguments.add_argument("--count", type=int, default=20, help="how many records of each file")
    arguments.add_argument("--together", type=int, default=1, help="how many records are written at once")
    add_method_arguments(arguments)
    add_run_arguments(arguments)
    options = parsed(arguments, argv, full={"count": None})

    files = {path: rl.load_records(path, strict=False)[: options.count] for path in options.records}
    for path, records in files.items():
        check_methods(path, records, options.methods, options.together)
    model = rl.load_model(options.model)
    methods, run = chosen_methods(model, options), run_options(options)
    frames, tables = [], []
    for path, records in files.items():
        schema = rl.data.schema_of(path)
        ways = OWN.get(schema, TOKENS)
        used = methods
        if options.together > 1:
            used = {name: Together(method, chunks(records, options.together)) for name, method in methods.items()}
        scores = rl.score_edits(
            model if options.engine == "local" else options.model,
            records,
            used,
            protocols=ways.protocols,
            score=ways.score,
            before=ways.before,
            **run | {"out": run["out"] / path.stem},
        )
        counted = wrong_before(scores) if schema == HALLU else scores
        frames.append(scores.assign(data=path.stem))
        tables.append(table_of(counted).assign(data=path.stem, schema=schema))
    table = pd.concat(tables, ignore_index=True)
    table = table[["data", "schema", *table.columns.drop(["data", "schema"])]]
    write_csv(pd.concat(frames, ignore_index=True), options.out / "scores.csv")
    write_csv(table, options.out / "table.csv")
    write_csv(by_method(table), options.out / "by_method.csv")
    write_manifest(options, model)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
