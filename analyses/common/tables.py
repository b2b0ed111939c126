"""Scores as the paper's tables print them."""

from collections.abc import Mapping

import pandas as pd


def as_in_paper(summary: pd.DataFrame, paper: Mapping[str, float | None], source: str) -> str:
    """A Markdown table of 100 times each score, with half of its 95 % interval in brackets, and the paper's row below.

    Args:
        summary: what `rome_lens.summarize` gives.
        paper: the table's columns, in its order, each with the paper's number or None. What the summary lacks is
            left out.
        source: what the paper's numbers are of.
    """
    columns = [name for name in paper if name in summary]
    rows = [["editor", "n", *columns], ["---"] * (2 + len(columns))]
    for row in summary.to_dict("records"):
        cells = [_score(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in columns]
        rows.append([str(row["method"]), str(row["n"]), *cells])
    rows.append([source, "", *("" if paper[name] is None else f"{paper[name]:.1f}" for name in columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def _score(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} ({50 * (high - low):.1f})" if pd.notna(value) else ""
