"""Shows the numbers that are known for models and methods, and where they come from.

`--model` and `--method` take the beginning of a name. `XConfig.for_model(model)` takes the numbers from this table.
"""

import argparse
from collections.abc import Sequence

import pandas as pd

from rome_lens.edit.presets.table import list_presets

from .common.options import program


def main(argv: Sequence[str] | None = None) -> None:
    arguments = argparse.ArgumentParser(program(), description=__doc__)
    arguments.add_argument("--model", default="", help="such as gpt-j")
    arguments.add_argument("--method", default="", help="such as memit")
    options = arguments.parse_args(argv)
    table = list_presets()
    for column in ("model", "method"):
        wanted = getattr(options, column).lower()
        chosen = table[table[column].str.lower().str.startswith(wanted)]
        if chosen.empty:
            known = ", ".join(dict.fromkeys(table[column]))
            arguments.error(f"--{column} is {wanted!r}, expected the beginning of one of {known}.")
        table = chosen
    for method, rows in table.groupby("method", sort=False):
        shown = rows.drop(columns="method").dropna(axis="columns", how="all")
        print(f"{method}\n{_plain(shown)}\n")


def _plain(table: pd.DataFrame) -> str:
    return table.to_string(index=False, na_rep="", float_format=lambda number: f"{number:g}")


if __name__ == "__main__":
    main()
