"""Passages as answers: what each method makes a model say, and what else that changes.

Each question of UnKEBench or EditEverything is put in the model's chat template, if it has one; the passage and the end
token are written as its answer, by each method alone. Then the model writes by itself, up to --new-tokens: for the
question, its paraphrase, the questions about parts, and the question of the next record, where "locality_other" says
how much of the passage stands in the answer to a question that it does not belong to. memit and alphaedit search one
vector for the whole passage, at the prompt's last token, bounded as anyedit's are.
table.csv has the means with 95 % bootstrap intervals over records. Rows are kept as they are measured, so that a run
that was stopped goes on where it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

import rome_lens as rl
from rome_lens.edit.search.settings import SearchConfig
from rome_lens.evaluate.measuring import Method
from rome_lens.models import Model

from .common.manifest import write_manifest
from .common.methods import BATCH, FINETUNING, QUIET, OneAtATime
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
    arguments.add_argument("--steps", type=int, default=default.steps, help="of anyedit, at most, for a window")
    arguments.add_argument(
        "--covariance-weight", type=float, default=default.covariance_weight, help="of anyedit, against one key"
    )
    arguments.add_argument("--at-once", type=int, default=5, help="answers that anyedit searches together")
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
    records = {path: as_put(model, rl.load_records(path))[: options.count] for path in options.records}
    methods = chosen(model, options, [each.request for listed in records.values() for each in listed])
    run, frames = run_options(options), []
    for path, listed in records.items():
        frame = rl.score_edits(
            model if options.engine == "local" else options.model,
            listed,
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


def chosen(model: Model, options: Any, requests: Sequence[rl.EditRequest]) -> dict[str, Method]:
    """The methods that the options name, with one search for all."""
    covariances = kept_covariances(model, options.layers, options)
    numbers = {name: getattr(options, name) for name in ("window", "steps", "covariance_weight")}
    config = rl.edit.AnyEditConfig(**numbers)
    search: SearchConfig = config.search
    shared = {name: getattr(search, name) for name in ("weight_decay", "clamp_norm_factor", "early_stop_loss")}
    single = OneAtATime(covariances, {"token": "last", "contexts": ["{}"], "kl_factor": 0.0} | shared)
    methods: dict[str, Method] = {
        **{name: partial(single, name) for name in BATCH},
        **{name: partial(rl.edit.finetune, config=each, **QUIET) for name, each in FINETUNING.items()},
        "anyedit": _WithTheNext(covariances, config, requests, options.at_once),
    }
    return {name: methods[name] for name in options.methods}


@dataclass
class _WithTheNext:
    """AnyEdit, which searches for the requests that come next together with the one that it writes."""

    covariances: Mapping[int, rl.KeyCovariance]
    config: rl.edit.AnyEditConfig
    requests: Sequence[rl.EditRequest] = field(compare=False)
    at_once: int = field(compare=False)
    last: rl.edit.AnyEditTargets | None = field(default=None, compare=False)

    def __call__(self, model: Model, request: rl.EditRequest) -> rl.Edit:
        if self.last is None or request not in self.last.values:
            first = self.requests.index(request)
            following = self.requests[first : first + self.at_once]
            self.last = rl.edit.anyedit_targets(
                model, following, layer=max(self.covariances), config=self.config, progress=False
            )
        given: dict[str, Any] = {"covariances": self.covariances, "config": self.config, "targets": self.last}
        return rl.edit.anyedit(model, request, **given, **QUIET)


if __name__ == "__main__":
    main()
