"""The answers to a record's questions: all in one batch, against model.generate for each prompt.

Both run in turn in one process and write the same tokens, at most 50 each, always the most probable one. model.generate
goes on after a stop, up to the end of the text; its answers are cut there. `one_by_one` stops early as the batch does,
so that what the batch saves is told from what the stopping saves; tokens_a_second_ratio counts each one's own tokens.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch

import rome_lens as rl
from rome_lens.evaluate.answers import Answer, generate_answers
from rome_lens.evaluate.protocols import record_questions
from rome_lens.models import Model
from rome_lens.models.tokens import tokenize

from .common.manifest import write_manifest
from .common.options import add_record_arguments, chosen_records, parser, write_csv


def by_generate(model: Model, prompts: Sequence[str], *, new_tokens: int) -> list[list[int]]:
    """The new tokens that TransformerLens' own generate writes after each prompt."""
    written = []
    for prompt in prompts:
        ids = torch.tensor([tokenize(model, prompt).ids], device=model.cfg.device)
        whole = model.generate(
            ids, max_new_tokens=new_tokens, do_sample=False, verbose=False, return_type="tokens", stop_at_eos=True
        )
        written.append(whole[0, ids.shape[1] :].tolist())
    return written


def one_by_one(model: Model, prompts: Sequence[str], *, new_tokens: int) -> list[Answer]:
    """`generate_answers` for each prompt alone."""
    return [generate_answers(model, [prompt], new_tokens=new_tokens)[0] for prompt in prompts]


def compare(model: Model, prompts: Sequence[str], *, new_tokens: int) -> dict[str, Any]:
    """Seconds for the same answers in three ways, and whether they are the same."""
    seconds: dict[str, float] = {}
    found: dict[str, Any] = {}
    ways: dict[str, Callable[..., Any]] = {
        "batch": generate_answers,
        "one_by_one": one_by_one,
        "generate": by_generate,
    }
    for name, way in ways.items():
        start = time.perf_counter()
        found[name] = way(model, prompts, new_tokens=new_tokens)
        seconds[name] = time.perf_counter() - start
    alone = [list(answer.tokens) for answer in found["one_by_one"]]
    cut = [full[: len(tokens)] for full, tokens in zip(found["generate"], alone, strict=True)]
    same = [list(a.tokens) == b == c for a, b, c in zip(found["batch"], alone, cut, strict=True)]
    return {
        "prompts": len(prompts),
        "tokens": sum(len(answer.tokens) for answer in found["batch"]),
        "generate_tokens": sum(map(len, found["generate"])),
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "same_answers": sum(same),
    }


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/benchmark_generation")
    arguments.add_argument("--new-tokens", type=int, default=50, help="the most that an answer has")
    add_record_arguments(arguments, count=3)
    options = arguments.parse_args(argv)

    model = rl.load_model(options.model)
    asked = [
        [question.prompt for questions in record_questions(record).values() for question in questions]
        for record in chosen_records(options)
    ]
    compare(model, asked[0][:2], new_tokens=2)  # warms up
    table = pd.DataFrame([compare(model, prompts, new_tokens=options.new_tokens) for prompts in asked])
    total = table.sum().to_frame().T
    table = pd.concat([table, total], ignore_index=True)
    table.insert(0, "record", [*map(str, range(len(asked))), "all"])
    for name in ("one_by_one", "generate"):
        table[f"ratio_to_{name}"] = table[f"{name}_seconds"] / table["batch_seconds"]
    table["relative_answer_difference"] = 1 - table["same_answers"] / table["prompts"]
    rate = table["tokens"] / table["batch_seconds"]
    table["tokens_a_second_ratio"] = rate / (table["generate_tokens"] / table["generate_seconds"])
    write_csv(table, options.out / "generation.csv")
    write_manifest(options, model)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
