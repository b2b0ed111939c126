"""Trains a MEND editor on zsRE's training records, for the comparison of paper tables 1 and 4.

It can be stopped at any time: the same command goes on. OUT/editor.safetensors is the editor, OUT/losses.csv its
losses, and OUT/training what a stopped run goes on from (delete it when all is done). The paper's numbers
are for many days of a GPU; a short run wants a narrower editor and larger steps, as the defaults here are.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import rome_lens as rl

from .common.manifest import write_manifest
from .common.options import parser, write_csv


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/mend")
    arguments.add_argument("--records", type=Path, required=True, help="a file in the schema of zsre_mend_train.json")
    arguments.add_argument("--validation", type=int, default=30, help="how many of the last records are held out")
    arguments.add_argument("--steps", type=int, default=500, help="of Adam, each of ten edits")
    arguments.add_argument("--interval", type=int, default=20, help="steps between two looks at the held-out records")
    arguments.add_argument("--rank", type=int, default=256, help="of the editor's matrices; the paper: 1920")
    arguments.add_argument("--learning-rate", type=float, default=1e-5, help="of the editor; the paper: 1e-6")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args(argv)

    records = rl.data.load_zsre(options.records, target="alt", strict=False)
    config = rl.edit.MendConfig(
        rank=options.rank, learning_rate=options.learning_rate, validation_interval=options.interval
    )
    model = rl.load_model(options.model)
    editor = rl.edit.train_mend(
        model,
        records[: -options.validation],
        validation=records[-options.validation :],
        steps=options.steps,
        config=config,
        seed=options.seed,
        out=options.out / "training",
    )
    editor.save(options.out / "editor.safetensors", overwrite=True)
    history = pd.DataFrame(editor.history)
    write_csv(history, options.out / "losses.csv")
    write_manifest(options, model)
    print(history.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
