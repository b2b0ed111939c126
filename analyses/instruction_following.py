"""Does a model still follow instructions after edits? AlpacaEval's win rates of what it writes.

Each method writes --edits records one after the other. Then the model answers instructions, in its chat template if it
has one, and a judge says for each whether it prefers the answer to that of the unedited model, and to the file's own
output, asked in both orders. 0.5 is no difference. table.csv has the win rates with 95 % intervals over instructions;
outputs.csv what was written. A model that judges itself shows only that the parts fit together: give --judge a stronger
one. Outputs are kept as they are written, so that a run that was stopped goes on where it was.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.evaluate.measuring import BASE, Method
from rome_lens.models import Model, model_identity
from rome_lens.storage import open_journal, plain

from .common.instructions import answers, read_instructions
from .common.manifest import write_manifest
from .common.methods import add_method_arguments, chosen_methods
from .common.options import add_record_arguments, chosen_records, parsed, parser, write_csv

_KIND = "rome_lens instruction following 1"
AGAINST = {"win_rate_unedited": BASE, "win_rate_reference": "reference"}


def edited(
    model: Model, name: str, method: Method, records: Sequence[Any], out: Path
) -> AbstractContextManager[object]:
    """The model with all records written by a method, one after the other."""
    run = rl.edit_sequence(model, records, method, out=out / "edits" / name, checkpoints=[len(records)])
    return run.edit.applied(model) if run.edit else nullcontext()


def win_rates(outputs: pd.DataFrame, judge: rl.evaluate.Preference) -> pd.DataFrame:
    """Rows as `summarize` reads them: of each method's outputs against the unedited model's, and the file's."""
    texts = outputs.set_index(["method", "case_id"])["output"]
    rows = []
    for row in tqdm(outputs[outputs["method"] != "reference"].to_dict("records"), desc="judge", unit="output"):
        for metric, other in AGAINST.items():
            if other != row["method"]:
                value = judge(row["instruction"], row["output"], texts[other, row["case_id"]])
                rows.append((row["case_id"], row["method"], rl.evaluate.judge_name(judge), metric, value))
    return pd.DataFrame(rows, columns=["case_id", "method", "protocol", "metric", "value"])


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/instruction_following")
    arguments.add_argument("--instructions", type=Path, required=True, help="AlpacaEval's outputs of some system")
    arguments.add_argument("--most", type=int, default=20, help="how many instructions")
    arguments.add_argument("--judge", help="a model, as --model; --model itself if absent")
    arguments.add_argument("--new-tokens", type=int, default=128, help="the most that an answer has")
    add_method_arguments(arguments)
    add_record_arguments(arguments, count=10)
    options = parsed(arguments, argv, full={"count": 100, "most": 805})

    asked = read_instructions(options.instructions, ("instruction", "output"))[: options.most]
    instructions = [row["instruction"] for row in asked]
    model, records = rl.load_model(options.model), chosen_records(options)
    methods: dict[str, Method | None] = {BASE: None, **chosen_methods(model, options)}
    identity = model_identity(model) | {"records": plain(records), "instructions": plain(asked)}
    identity |= {"new_tokens": options.new_tokens}
    with open_journal(options.out / "outputs", kind=_KIND, identity=identity, read=dict) as journal:
        done: dict[str, list[str]] = {row["method"]: row["outputs"] for row in journal.rows}
        for name, method in methods.items():
            journal.claim({f"method {name}": plain(method)})
            if name not in done:
                with nullcontext() if method is None else edited(model, name, method, records, options.out):
                    done[name] = answers(model, instructions, options.new_tokens)
                journal.append({"method": name, "outputs": done[name]})
    every = {"reference": [row["output"] for row in asked]} | {name: done[name] for name in methods}
    outputs = pd.DataFrame(
        [
            {"method": name, "case_id": i, "instruction": instructions[i], "output": text}
            for name, texts in every.items()
            for i, text in enumerate(texts)
        ]
    )
    own = options.judge in (None, options.model)
    judge_model = model if own else rl.load_model(options.judge)
    judge = rl.evaluate.Preference(
        judge_model, name=options.judge or options.model, chat=bool(judge_model.tokenizer.chat_template)
    )
    table = rl.summarize(win_rates(outputs, judge))
    write_csv(outputs, options.out / "outputs.csv")
    write_csv(table, options.out / "table.csv")
    write_manifest(options, model)
    print(table.round(3).to_string(index=False))
    if own:
        print("The model was its own judge: these are no results, and show only that the parts fit together.")


if __name__ == "__main__":
    main()
