"""Do edits of prompts that begin with a short subject hold, and does health say so where they do not?

Sixty subjects of one, two and three tokens (as SmolLM2 counts them), each at the very start of its prompt: cities,
firms, languages, persons and products. Each is edited with `rome`'s default, and the probability of the new object is
measured in the edited model after the bare prompt, after "As everybody knows, " and after a sentence. `problems` is
what the edit's health says.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.models import model_identity
from rome_lens.storage import open_journal, plain

from .common.manifest import write_manifest
from .common.options import add_covariance_arguments, parsed, parser, rome_covariance, write_csv

KINDS = {
    "city": (
        "{} is a city in the country of",
        "Canada, Japan, Brazil, Egypt",
        "Paris, London, Rome, Washington, New York, Tokyo, Los Angeles, Cairo, "
        "Hong Kong, Buenos Aires, Cape Town, Lisbon",
    ),
    "firm": (
        "{} was founded by",
        "Steve Jobs, Henry Ford, Walt Disney, Thomas Edison",
        "Google, Apple, Microsoft, Amazon, General Motors, Intel, Nintendo, Red Bull, "
        "Toyota, Burger King, Lockheed Martin, Spotify",
    ),
    "language": (
        "{} is the official language of",
        "Peru, Kenya, Norway, Thailand",
        "English, French, German, Japanese, Danish, Swahili, Ancient Greek, Polish, "
        "Finnish, Portuguese, Mandarin Chinese, Hindi",
    ),
    "person": (
        "{} was born in the city of",
        "Rome, Tokyo, Chicago, Berlin",
        "Newton, Darwin, Jesus, David, Einstein, Mark Twain, Charles Darwin, Plato, "
        "Albert Einstein, Isaac Newton, Marie Curie, Bob Dylan",
    ),
    "product": (
        "{} is a product of the company",
        "Nokia, IBM, Microsoft, Samsung",
        "Windows, Word, Java, Linux, Xbox, Game Boy, Internet Explorer, Kindle, "
        "Adobe Reader, Nintendo Switch, Final Cut Pro, Safari",
    ),
}
"""Of each kind: a prompt, four new objects, and four subjects each of one, two and three tokens."""
CONTEXTS = {
    "bare": "{}",
    "clause": "As everybody knows, {}",
    "sentence": "The weather was pleasant, and people were walking in the park. {}",
}


def requests() -> dict[rl.EditRequest, str]:
    """What is edited, with its kind; the new objects in turn."""
    return {
        rl.EditRequest(prompt, subject, target=objects.split(", ")[i % 4]): kind
        for kind, (prompt, objects, subjects) in KINDS.items()
        for i, subject in enumerate(subjects.split(", "))
    }


def measured(model: rl.Model, request: rl.EditRequest, covariance: rl.KeyCovariance) -> dict[str, Any]:
    """One edit's probabilities of the new object in each context, and its health's problems."""
    edit = rl.rome(model, request, covariance=covariance, on_unhealthy="ignore", progress=False)
    queries = [replace(request, prompt=context.replace("{}", request.prompt)) for context in CONTEXTS.values()]
    with edit.applied(model):
        scores = rl.edit.target_probabilities(model, queries).tolist()
    assert edit.health is not None
    return dict(zip(CONTEXTS, scores, strict=True)) | {"problems": "; ".join(edit.health.problems)}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """By number of tokens: how many edits give the new object at least half of the probability in each context, and
    how many fail at the bare prompt without a problem.
    """
    held = frame[list(CONTEXTS)] >= 0.5
    held["silent_failures"] = ~held["bare"] & (frame["problems"] == "")
    held.insert(0, "subjects", 1)
    table = held.groupby(frame["tokens"].astype(str)).sum()
    table.loc["all"] = table.sum()
    return table.astype(int).reset_index(names="tokens")


def main(argv: Sequence[str] | None = None) -> None:
    arguments: argparse.ArgumentParser = parser(__doc__, out="results/short_subjects")
    arguments.add_argument("--count", type=int, default=10, help="how many subjects, the kinds in turn")
    add_covariance_arguments(arguments)
    options = parsed(arguments, argv, full={"count": 60})

    model = rl.load_model(options.model)
    covariance = rome_covariance(model, options)
    kinds = requests()
    size = len(kinds) // len(KINDS)
    chosen = sorted(kinds, key=lambda request: list(kinds).index(request) % size)[: options.count]
    identity = model_identity(model) | {"covariance": plain(covariance), "config": plain(rl.RomeConfig())}
    rows = []
    with open_journal(
        options.out / "edits", kind="rome_lens short subjects 1", identity=identity, read=dict
    ) as journal:
        known = {row["prompt"]: row for row in journal.rows}
        for request in tqdm(chosen, desc="edits", unit="edit"):
            tokens = len(model.tokenizer(request.subject, add_special_tokens=False)["input_ids"])
            row = {"kind": kinds[request], "tokens": tokens, "prompt": request.text, "target": request.target}
            if request.text not in known:
                known[request.text] = row | measured(model, request, covariance)
                journal.append(known[request.text])
            rows.append(known[request.text])
    frame = pd.DataFrame(rows)
    table = summary(frame)
    write_csv(frame, options.out / "subjects.csv")
    write_csv(table, options.out / "table.csv")
    write_manifest(options, model)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
