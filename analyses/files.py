"""Where analyses read from and write to."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.layout import as_in_paper
from rome_lens import EditRecord, load_builtin_records, load_counterfact, summarize
from rome_lens.storage import new_file


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the module's docstring and the defaults."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)


def parsed(
    arguments: argparse.ArgumentParser, argv: Sequence[str] | None, *, full: Mapping[str, Any]
) -> argparse.Namespace:
    """The options; with --full, those that are not given are the paper's, `full`."""
    size = ", ".join(f"{name} {'all' if value is None else value}" for name, value in full.items())
    arguments.add_argument("--full", action="store_true", help=f"the paper's size ({size}) where nothing else is said")
    if arguments.parse_args(argv).full:
        arguments.set_defaults(**full)
    return arguments.parse_args(argv)


def add_record_arguments(arguments: argparse.ArgumentParser, count: int) -> None:
    """Which records an analysis runs on."""
    arguments.add_argument("--records", type=Path, help="a file in CounterFact's schema; the package's facts if absent")
    arguments.add_argument("--case-ids", type=Path, help="a JSON list: the case_ids to use, in this order")
    arguments.add_argument("--skip", type=int, default=0, help="how many records to leave out at the start")
    arguments.add_argument("--count", type=int, default=count, help="how many records")


def chosen_records(options: argparse.Namespace) -> list[EditRecord]:
    """The records that the options name."""
    return listed_records(options)[: options.count]


def listed_records(options: argparse.Namespace) -> list[EditRecord]:
    """All records that the options name, however many are asked for."""
    records = load_counterfact(options.records) if options.records else load_builtin_records()
    if options.case_ids:
        by_id = {record.case_id: record for record in records}
        records = [by_id[case_id] for case_id in json.loads(options.case_ids.read_text())]
    return records[options.skip :]


def add_run_arguments(arguments: argparse.ArgumentParser, out: str) -> None:
    """Where an evaluation keeps its rows, and where it runs."""
    arguments.add_argument("--out", type=Path, default=Path(out), help="a folder: a run goes on from what it holds")
    arguments.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: see docs/cluster.md")
    arguments.add_argument("--workers", type=int, default=1, help="of ray, each with a model of its own")
    arguments.add_argument("--gpus-per-worker", type=float, default=0.0, help="of ray")


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of `add_run_arguments` are for `run_evaluation`; its rows are in OUT/rows."""
    chosen = {name: getattr(options, name) for name in ("engine", "workers", "gpus_per_worker")}
    return {"out": options.out / "rows", **chosen}


def write_scores(frame: pd.DataFrame, out: Path, *, paper: Mapping[str, float | None], source: str) -> None:
    """Writes records.csv, their summary table.csv, and table.md in the paper's layout (see `as_in_paper`), and prints
    the last.
    """
    summary = summarize(frame)
    table = as_in_paper(summary, paper, source)
    write_csv(frame, out / "records.csv")
    write_csv(summary, out / "table.csv")
    with new_file(out / "table.md", overwrite=True) as temporary:
        temporary.write_text(table, encoding="utf-8")
    print(table)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Writes a table, whole or not at all."""
    with new_file(path, overwrite=True) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
