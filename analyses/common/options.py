"""The commands' options, and what they name: files, facts, records, covariances."""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens import EditRecord, load_builtin_records, load_counterfact, summarize
from rome_lens.edit.covariance.shipped import SHIPPED_COVARIANCES, shipped_covariance
from rome_lens.locate.prompt import prepare_prompt
from rome_lens.models import Model
from rome_lens.storage import new_file

from .instructions import own_answers
from .tables import as_in_paper


def program() -> str:
    """What the running command is called: `rome-lens NAME`, which `python -m analyses.NAME` is too."""
    return f"rome-lens {Path(sys.argv[0]).stem}"


class _Parser(argparse.ArgumentParser):
    """Takes no number below 0, NaN or infinity: `records[:-3]` would be all but three."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        if options.get("type") in (int, float):
            options["type"] = partial(_number, options["type"])
        return super().add_argument(*names, **options)


def _number(kind: Callable[[str], float], text: str) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} given, expected {what} of at least 0")
    return number


def parser(description: str | None, *, out: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows the module's docstring and the defaults. With `out`, it takes --model and --out."""
    shown = argparse.ArgumentDefaultsHelpFormatter
    arguments = _Parser(program(), description=description, formatter_class=shown)
    if out is not None:
        arguments.add_argument("--model", default="smollm2-135m", help="a name, a folder or a .gguf file")
        arguments.add_argument("--out", type=Path, default=Path(out), help="the folder to write into")
    return arguments


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


def listed_records(options: argparse.Namespace, read: Callable[[Path], list[Any]] = load_counterfact) -> list[Any]:
    """All records that the options name, however many are asked for; CounterFact's, unless `read` gives others."""
    records = read(options.records) if options.records else load_builtin_records()
    if options.case_ids:
        by_id = {record.case_id: record for record in records}
        records = [by_id[case_id] for case_id in json.loads(options.case_ids.read_text())]
    return records[options.skip :]


def add_run_arguments(arguments: argparse.ArgumentParser) -> None:
    """Where an evaluation runs."""
    arguments.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: see docs/cluster.md")
    arguments.add_argument("--workers", type=int, default=1, help="of ray, each with a model of its own")
    arguments.add_argument("--gpus-per-worker", type=float, default=0.0, help="of ray")


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the options are for `score_edits`; its rows are in OUT/rows."""
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


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Writes a table, whole or not at all; an apostrophe stands before texts that a spreadsheet takes for formulas."""
    safe = frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell)
    returns = safe.map(lambda cell: isinstance(cell, str) and "\r" in cell).any(axis=None)
    ends = "\r\n" if returns else "\n"  # csv quotes a carriage return only where lines end in one
    with new_file(path, overwrite=True) as temporary:
        safe.rename(columns=lambda name: f"'{name}" if _FORMULA.match(str(name)) else name).to_csv(
            temporary, index=False, float_format="%.6g", lineterminator=ends
        )


def read_csv(path: Path) -> pd.DataFrame:
    """A table that `write_csv` has written. Words such as "null" stay words, since tokens may be such."""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""]).rename(columns=_as_it_was)
    return frame.map(_as_it_was)


def _as_it_was(cell: Any) -> Any:
    """A cell without the apostrophe that `write_csv` has put before it."""
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell) else cell


def add_perplexity_arguments(arguments: argparse.ArgumentParser, tokens: int) -> None:
    """What text a model's perplexity is of."""
    arguments.add_argument("--perplexity-texts", type=Path, help="a text file; without it there is no perplexity")
    arguments.add_argument("--perplexity-tokens", type=int, default=tokens, help="how much of it to read")


def perplexity_text(options: argparse.Namespace) -> str | None:
    """That text."""
    return "".join(rl.edit.texts_from_file(options.perplexity_texts)) if options.perplexity_texts else None


TEXTS = ("Salesforce/wikitext", "wikitext-103-raw-v1")  # on the Hugging Face hub


def add_covariance_arguments(arguments: argparse.ArgumentParser) -> None:
    """Where ROME's covariance comes from."""
    arguments.add_argument(
        "--covariance", type=Path, help="a saved KeyCovariance for ROME; the shipped one, or one of the suggested layer"
    )
    add_collecting_arguments(arguments)


def add_collecting_arguments(arguments: argparse.ArgumentParser) -> None:
    """Where covariances are kept, and what the missing ones are collected from."""
    arguments.add_argument(
        "--covariances", type=Path, default=Path("results/covariances"), help="a folder: layer4.safetensors..."
    )
    sources = arguments.add_mutually_exclusive_group()
    sources.add_argument(
        "--texts", type=Path, help="a text file, for the covariances that are not there yet; WikiText-103 if absent"
    )
    sources.add_argument(
        "--own-answers",
        type=Path,
        metavar="INSTRUCTIONS",
        help="a file in AlpacaEval's schema; instead of --texts: instructions, each with what the model answers",
    )
    arguments.add_argument("--tokens", type=int, default=100_000, help="tokens of the text to use")


def rome_covariance(model: Model, options: argparse.Namespace) -> rl.KeyCovariance:
    """The one that is given; else, without --own-answers, the one that ships; else the suggested layer's, kept."""
    if options.covariance:
        return rl.KeyCovariance.load(options.covariance)
    if str(model.cfg.model_name) in SHIPPED_COVARIANCES and not options.own_answers:
        return shipped_covariance(model)
    layer = rl.edit.suggested_layer(model)
    return kept_covariances(model, [layer], options)[layer]


def kept_covariances(model: Model, layers: Iterable[int], options: argparse.Namespace) -> dict[int, rl.KeyCovariance]:
    """Those in the folder, and those that it lacks, collected from the text in one pass.

    Raises:
        CovarianceError: one in the folder is that of another model or layer, or --own-answers is given and it is of
            something else.
    """
    paths = {layer: options.covariances / f"layer{layer}.safetensors" for layer in layers}
    if missing := [layer for layer, path in paths.items() if not path.exists()]:
        made = rl.collect_covariance(model, missing, **_collecting_from(model, options))
        for layer in missing:
            made[layer].save(paths[layer])
    found = {layer: rl.KeyCovariance.load(path) for layer, path in paths.items()}
    for layer, covariance in found.items():
        covariance.check(model, layer)
        if options.own_answers and covariance.corpus != (expected := _own_corpus(model, options)):
            raise rl.errors.CovarianceError(
                f"{paths[layer]} is of {covariance.corpus or 'an unknown text'}, expected {expected}. Give another "
                "folder as --covariances, or leave --own-answers out."
            )
    return found


def _own_corpus(model: Model, options: argparse.Namespace) -> str:
    return f"{model.cfg.model_name}'s answers to {options.own_answers.name}"


def _collecting_from(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    if not options.own_answers:
        texts = rl.edit.texts_from_file(options.texts) if options.texts else rl.edit.texts_from_dataset(*TEXTS)
        return {"texts": texts, "tokens": options.tokens}
    written = own_answers(model, options.own_answers)
    tokens = sum(len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in written)
    return {"texts": written, "tokens": min(tokens, options.tokens), "corpus": _own_corpus(model, options)}


def add_fact_arguments(arguments: argparse.ArgumentParser, count: int, samples: int = 3) -> None:
    """Which facts, and how many corrupted runs each."""
    arguments.add_argument("--facts", type=Path, help="a file in known_1000.json's schema; the package's if absent")
    arguments.add_argument("--count", type=int, default=count, help="how many of those that the model predicts")
    arguments.add_argument("--samples", type=int, default=samples, help="corrupted runs for each number")


def facts_of(path: Path | None) -> list[rl.Fact]:
    """The facts of a file in known_1000's schema, or the package's."""
    return rl.data.load_known_facts(path) if path else [record.fact for record in rl.load_builtin_records()]


def chosen_facts(model: Model, options: argparse.Namespace) -> list[rl.Fact]:
    """The first facts that the options ask for and the model predicts."""
    facts = facts_of(options.facts)
    return [facts[number] for number in predicted(model, facts, options.count)]


def predicted(model: Model, facts: Sequence[rl.Fact], count: int | None) -> list[int]:
    """The numbers of the first facts whose answer begins with the model's own top token; of all if `count` is None."""
    found: list[int] = []
    with tqdm(total=count, desc="facts that the model predicts", unit="fact") as bar:
        for number, fact in enumerate(facts):
            if len(found) == count:
                break
            prompt = prepare_prompt(model, fact)
            if int(prompt.answer[0]) == prompt.predicted:
                found.append(number)
                bar.update()
    return found
