"""Passages as answers: what each method makes a model say, and what else that changes.

Each question of UnKEBench or EditEverything is put in the model's chat template, if it has one; the passage and the end
token are written as its answer, by each method alone. Then the model writes by itself, up to --new-tokens: for the
question, its paraphrase, the questions about parts, and the question of the next record, where "locality_other" says
how much of the passage stands in the answer to a question that it does not belong to. memit and alphaedit search one
vector for the whole passage, at the prompt's last token, with the numbers that anyedit has for each of its windows.
table.csv has the means with 95 % bootstrap intervals over records. Rows are kept as they are measured, so that a run
that was stopped goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

import rome_lens as rl
from rome_lens.edit.search.settings import SearchConfig
from rome_lens.evaluate.measuring import Method
from rome_lens.models import Model

from .common.manifest import write_manifest
from .common.methods import BATCH, FINETUNING, QUIET
from .common.options import (
    add_collecting_arguments,
    add_perplexity_arguments,
    add_run_arguments,
    kept_covariances,
    parsed,
    parser,
    perplexity_text,
    run_options,
    write_csv,
)

CHOICES = ("memit", "alphaedit", "ft", "anyedit")
SHOWN = (
    "efficacy_rougeL",
    "paraphrase_rougeL",
    "portability_sub_question_rougeL",
    "locality_other_rougeL",
    "perplexity",
)


def main(argv: Sequence[str] | None = None) -> None:
    default = rl.edit.AnyEditConfig()
    arguments = parser(__doc__, out="results/long_answers")
    arguments.add_argument(
        "--records", type=Path, nargs="+", required=True, help="files of UnKEBench or EditEverything"
    )
    arguments.add_argument("--count", type=int, default=15, help="how many records of each file")
    arguments.add_argument("--methods", nargs="+", choices=CHOICES, default=list(CHOICES))
    arguments.add_argument("--layers", type=int, nargs="+", default=[4], help="blocks to edit")
    arguments.add_argument("--window", type=int, default=default.window, help="of anyedit, in tokens")
    arguments.add_argument("--steps", type=int, default=default.steps, help="of a vector's search")
    arguments.add_argument("--new-tokens", type=int, default=512, help="the most that the model writes")
    arguments.add_argument("--encoder", type=Path, help="a folder with a sentence encoder, for the cosine")
    add_perplexity_arguments(arguments, tokens=1000)
    add_collecting_arguments(arguments)
    add_run_arguments(arguments)
    options = parsed(arguments, argv, full={"count": None})

    model = rl.load_model(options.model)
    score = partial(
        long_answers,
        new_tokens=options.new_tokens,
        encoder=options.encoder,
        text=perplexity_text(options),
        tokens=options.perplexity_tokens,
    )
    methods = chosen(model, options)
    run, frames = run_options(options), []
    for path in options.records:
        frame = rl.score_edits(
            model if options.engine == "local" else options.model,
            as_put(model, rl.load_records(path))[: options.count],
            methods,
            score=score,
            **run | {"out": run["out"] / path.stem},
        )
        frames.append(frame.assign(data=path.stem))
    scores = pd.concat(frames, ignore_index=True)
    summary = [rl.summarize(frame).assign(data=name) for name, frame in scores.groupby("data", sort=False)]
    table = pd.concat(summary, ignore_index=True)
    write_csv(scores, options.out / "scores.csv")
    write_csv(table, options.out / "table.csv")
    write_manifest(options, model)
    shown = ["data", "method", "n", *(name for name in SHOWN if name in table)]
    print(table[shown].round(3).to_string(index=False))


def as_put(model: Model, records: Sequence[Any]) -> list[rl.data.QuestionRecord]:
    """The records in the chat template, with the end token after the passage, each with the next one's question."""
    made = []
    for record, following in zip(records, [*records[1:], *records[:1]], strict=True):
        passage = record.request.target
        other = (rl.data.Question(following.request.text, passage),)
        whole = replace(record, locality={"other": other})
        if model.tokenizer.chat_template:
            whole = rl.data.in_chat(model, whole)
        made.append(replace(whole, request=replace(whole.request, target=passage + model.tokenizer.eos_token)))
    return made


def long_answers(
    model: Model,
    record: rl.data.QuestionRecord,
    *,
    new_tokens: int,
    encoder: Path | None,
    text: str | None,
    tokens: int,
) -> dict[str, float]:
    """The scores of a record, and the perplexity on ordinary text."""
    measure = None if encoder is None else _encoder(encoder)
    scores = rl.evaluate.score_long_answers(model, record, encoder=measure, new_tokens=new_tokens)
    if text is not None:
        scores["perplexity"] = rl.evaluate.perplexity(model, text, tokens=tokens, progress=False)
    return scores


_encoder = cache(rl.evaluate.sentence_encoder)


def chosen(model: Model, options: Any) -> dict[str, Method]:
    """The methods that the options name, with one search for all."""
    covariances = kept_covariances(model, options.layers, options)
    anyedit = rl.edit.AnyEditConfig(window=options.window, steps=options.steps)
    search: SearchConfig = anyedit.search
    shared = {name: getattr(search, name) for name in ("steps", "weight_decay", "clamp_norm_factor", "early_stop_loss")}
    methods: dict[str, Method] = {}
    for name in options.methods:
        if name == "anyedit":
            methods[name] = partial(rl.edit.anyedit, config=anyedit, covariances=covariances, **QUIET)
        elif name in BATCH:
            method, config = BATCH[name]
            numbers = config(token="last", contexts=["{}"], kl_factor=0.0, **shared)
            methods[name] = partial(method, config=numbers, covariances=covariances, **QUIET)
        else:
            methods[name] = partial(rl.edit.finetune, config=FINETUNING[name], **QUIET)
    return methods


if __name__ == "__main__":
    main()
