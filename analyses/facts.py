"""Which facts an analysis traces."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.locate.question import tokenize_question
from rome_lens.models import Model


def add_fact_arguments(arguments: argparse.ArgumentParser, count: int, samples: int = 3) -> None:
    """Which facts, and how many corrupted runs each."""
    arguments.add_argument("--facts", type=Path, help="a file in known_1000.json's schema; the package's if absent")
    arguments.add_argument("--count", type=int, default=count, help="how many of those that the model predicts")
    arguments.add_argument("--samples", type=int, default=samples, help="corrupted runs for each number")


def facts_of(path: Path | None) -> list[rl.Fact]:
    """The facts of a file in known_1000's schema, or the package's."""
    return rl.load_known_facts(path) if path else [record.fact for record in rl.load_builtin_records()]


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
            asked = tokenize_question(model, fact)
            if int(asked.answer[0]) == asked.predicted:
                found.append(number)
                bar.update()
    return found
