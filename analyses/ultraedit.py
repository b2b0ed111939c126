"""UltraEdit over many turns: what is left of all edits so far, of unrelated questions and of the language model.

A row for each layers' set, matrices, learning rate and checkpoint. The records are zsRE's, or made-up facts, which are
for the scale alone. At a checkpoint at most --sample of the records edited so far are scored, evenly spaced. To choose
numbers, sweep over records that are not scored later (--skip).
"""

import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.models import Model, find_matrix

from .common.manifest import write_manifest
from .common.options import add_perplexity_arguments, parsed, parser, perplexity_text, write_csv

_SYLLABLES = (
    "bal",
    "kor",
    "ter",
    "vin",
    "mas",
    "lo",
    "dri",
    "fen",
    "gul",
    "pra",
    "sen",
    "tok",
    "wel",
    "zim",
    "hun",
    "rax",
)
_CITIES = (
    "Paris",
    "Rome",
    "Seattle",
    "London",
    "Berlin",
    "Madrid",
    "Vienna",
    "Tokyo",
    "Moscow",
    "Boston",
    "Chicago",
    "Dublin",
)


def made_up(count: int) -> list[rl.data.QuestionRecord]:
    """People who do not exist, each with a city: a number in base 16, spelt in syllables."""
    records = []
    for number in range(count):
        digits = [(number * 40_503 + 12_345) % 65_536 >> shift & 15 for shift in (0, 4, 8, 12)]
        first, last = ("".join(_SYLLABLES[digit] for digit in part).capitalize() for part in (digits[:2], digits[2:]))
        request = rl.EditRequest("{} was born in the city of", f"{first} {last}", _CITIES[number % len(_CITIES)])
        records.append(rl.data.QuestionRecord(request, case_id=number))
    return records


def run(
    model: Model,
    records: Sequence[rl.data.QuestionRecord],
    config: rl.edit.UltraEditConfig,
    *,
    turn: int,
    checkpoints: Sequence[int],
    sample: int,
    text: str | None,
    tokens: int,
) -> Iterator[dict[str, Any]]:
    """The rows of a sequence, from the unedited model on. Afterwards the model is what it was."""
    memory, seconds, done = rl.edit.EditMemory(), 0.0, 0
    originals = {
        (layer, matrix): find_matrix(model, layer, matrix).values.clone()
        for matrix, blocks in config.layers_for(model).items()
        for layer in blocks
    }
    yield {"edits": 0} | measured(model, records, sample=sample, text=text, tokens=tokens)
    try:
        for start in tqdm(range(0, len(records), turn), desc="turns"):
            part = [record.request for record in records[start : start + turn]]
            began = time.process_time()
            edit = rl.edit.ultraedit(model, part, config=config, memory=memory, on_unhealthy="ignore", progress=False)
            edit.apply(model)
            seconds += time.process_time() - began
            reached = any(start < each <= start + len(part) for each in checkpoints)
            done = start + len(part)
            if reached or done == len(records):
                growth = max(
                    ((find_matrix(model, *place).values - before).norm() / before.norm()).item()
                    for place, before in originals.items()
                )
                figures = {"edits": done, "cpu_seconds_an_edit": seconds / done, "norm_growth": growth}
                yield figures | measured(model, records[:done], sample=sample, text=text, tokens=tokens)
    finally:
        rl.edit.revert_edits(model)


def measured(
    model: Model, records: Sequence[rl.data.QuestionRecord], *, sample: int, text: str | None, tokens: int
) -> dict[str, float]:
    """Mean scores of at most `sample` records, evenly spaced, and the perplexity."""
    count = min(sample, len(records))
    scored = [records[number * len(records) // count] for number in range(count)]
    means = pd.DataFrame([rl.evaluate.score_zsre(model, record) for record in scored]).mean()
    scores = {str(name): float(value) for name, value in means.items()}
    if text is not None:
        scores["perplexity"] = rl.evaluate.perplexity(model, text, tokens=tokens, progress=False)
    return {"scored": count, **scores}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/ultraedit")
    arguments.add_argument("--records", type=Path, help="a file in zsRE's schema; made-up facts if absent")
    arguments.add_argument("--skip", type=int, default=0, help="how many records to leave out at the start")
    arguments.add_argument("--count", type=int, default=200, help="how many records")
    arguments.add_argument("--turn", type=int, default=100, help="how many are written at once")
    arguments.add_argument("--layers", nargs="+", default=["default"], help="sets of blocks: 18,20,22 or default")
    arguments.add_argument("--matrices", nargs="+", default=["out"], help="sets of matrices: out or in,gate,out")
    arguments.add_argument("--learning-rates", type=float, nargs="+", default=[rl.edit.UltraEditConfig().learning_rate])
    arguments.add_argument("--checkpoints", type=int, nargs="+", default=[100, 200, 500, 1000, 2000, 5000, 10_000])
    arguments.add_argument("--sample", type=int, default=100, help="how many records are scored at a checkpoint")
    add_perplexity_arguments(arguments, tokens=2_000)
    options = parsed(arguments, argv, full={"count": 10_000})

    model = rl.load_model(options.model)
    records = made_up(options.skip + options.count)
    if options.records:
        records = rl.data.load_zsre(options.records, strict=False)
    records = records[options.skip : options.skip + options.count]
    rows = []
    for layers, matrices, rate in product(options.layers, options.matrices, options.learning_rates):
        usual = rl.edit.UltraEditConfig().layers_for(model)["out"]
        blocks = usual if layers == "default" else [int(layer) for layer in layers.split(",")]
        config = rl.edit.UltraEditConfig(layers=dict.fromkeys(matrices.split(","), blocks), learning_rate=rate)
        given: dict[str, Any] = {
            "turn": options.turn,
            "checkpoints": options.checkpoints,
            "sample": options.sample,
            "text": perplexity_text(options),
            "tokens": options.perplexity_tokens,
        }
        numbers = {"layers": " ".join(map(str, blocks)), "matrices": matrices, "learning_rate": rate}
        for row in run(model, records, config, **given):
            rows.append({**numbers, **row})
            write_csv(pd.DataFrame(rows), options.out / "table.csv")
            print(rows[-1], flush=True)
    write_manifest(options, model)


if __name__ == "__main__":
    main()
