"""Many records written at once: the scores of MEMIT, EMMET, AlphaEdit and a ledger on CounterFact records, and before.

All records are scored on the model that holds them all. A ledger gives each key one answer: with it, the first record
about each subject is taken. What was done is kept and not done again: covariances in their folder, the targets that the
methods share, the ledger and each method's scores in OUT.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pandas as pd

import rome_lens as rl
from rome_lens.models import Model, model_identity
from rome_lens.storage import open_journal, plain

from .common.manifest import write_manifest
from .common.methods import (
    BATCH,
    BATCH_LAYERS,
    QUIET,
    add_closed_form_arguments,
    add_search_arguments,
    batch_config,
    shortened,
)
from .common.options import (
    add_covariance_arguments,
    add_perplexity_arguments,
    add_record_arguments,
    kept_covariances,
    listed_records,
    parsed,
    parser,
    perplexity_text,
    rome_covariance,
    write_csv,
)

LEDGER = "ledger"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/batch_editing")
    arguments.add_argument("--methods", choices=[*BATCH, LEDGER], nargs="+", default=list(BATCH))
    arguments.add_argument("--layers", type=int, nargs="+", default=BATCH_LAYERS)
    add_covariance_arguments(arguments)
    add_closed_form_arguments(arguments)
    add_search_arguments(arguments)
    add_perplexity_arguments(arguments, tokens=10_000)
    add_record_arguments(arguments, count=100)
    options = parsed(arguments, argv, full={"count": 10_000})

    model = rl.load_model(options.model)
    records = listed_records(options)
    if LEDGER in options.methods:
        records = list({record.request.subject: record for record in records[::-1]}.values())[::-1]
    records = records[: options.count]
    requests = [record.request for record in records]
    covariances = kept_covariances(model, options.layers if {*options.methods} & {*BATCH} else [], options)
    identity = model_identity(model) | {"records": plain(records), "covariances": plain(covariances)}
    text, tokens = perplexity_text(options), options.perplexity_tokens
    with open_journal(options.out / "scores", kind="rome_lens batch scores 2", identity=identity, read=dict) as journal:
        done = {row["method"]: row for row in journal.rows}

        def score(name: str, edit: Callable[[], rl.Edit] | None = None) -> None:
            if name not in done:
                with nullcontext() if edit is None else edit().applied(model):
                    rows = rl.score_edits(model, records, {}).assign(method=name).to_dict("records")
                    found = text and rl.evaluate.perplexity(model, text, tokens=tokens, progress=False)
                done[name] = {"method": name, "rows": rows, "perplexity": found}
                journal.append(done[name])

        score("base")
        for method in options.methods:
            name = described(method, options)
            config = shortened(model, options, rl.RomeConfig() if method == LEDGER else batch_config(method, options))
            journal.claim({f"config of {name}": plain(config)})
            score(name, partial(computed, method, config, model, requests, covariances, options))
    frame = pd.concat(pd.DataFrame(row["rows"]) for row in done.values())
    write_csv(frame, options.out / "records.csv")
    summary = rl.summarize(frame)
    summary["perplexity"] = [done[name]["perplexity"] for name in summary["method"]]
    write_csv(summary, options.out / "table.csv")
    write_manifest(options, model)
    shown = ["method", "n", "S", "ES", "PS", "NS", "EM", "PM", "NM", "perplexity"]
    print(summary[shown].round(3).to_string(index=False))


def described(method: str, options: argparse.Namespace) -> str:
    """The method with its numbers: what its rows are known by."""
    if method == LEDGER:
        return LEDGER
    numbers = {
        "memit": f", weight {options.covariance_weight:g}" if options.covariance_weight else "",
        "emmet": "",
        "alphaedit": f", threshold {options.null_space_threshold:g}, ridge {options.ridge:g}",
    }
    return f"{method}, layers {' '.join(map(str, options.layers))}{numbers[method]}"


def computed(
    method: str,
    config: Any,
    model: Model,
    requests: Sequence[rl.EditRequest],
    covariances: dict[int, rl.KeyCovariance],
    options: argparse.Namespace,
) -> rl.Edit:
    """The edit of the method. What its search has found is kept in OUT."""
    if method == LEDGER:
        covariance = rome_covariance(model, options)
        own = {covariance.layer: covariance}
        ledger = rl.EditLedger(model, covariances=own, config=config, out=options.out / "ledger")
        ledger.add(requests)
        return ledger.edit(on_unhealthy="ignore")
    out, layer = options.out / "targets", max(options.layers)
    targets = rl.edit.memit_targets(model, requests, layer=layer, config=config, out=out)
    return BATCH[method][0](model, requests, covariances=covariances, targets=targets, config=config, **QUIET)


if __name__ == "__main__":
    main()
