"""Draws the figures of kept results anew from their tables: no model runs.

Each folder is what an analysis has written with --out; its manifest.json names the analysis. Such as
`rome-lens redraw results/figure2 --columns 1`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rome_lens.plots.saving import Suffix

from .common.figures import kept_figures, write_figures
from .common.options import parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("folders", type=Path, nargs="+", help="what analyses have written")
    arguments.add_argument("--columns", type=int, choices=(1, 2), help="of a paper, to fill; if absent, as at first")
    forms = [suffix[1:] for suffix in get_args(Suffix)]
    arguments.add_argument("--forms", nargs="+", choices=forms, default=["html", "pdf", "svg", "png"], help="of files")
    arguments.add_argument("--out", type=Path, help="where each has a folder of its name; beside the tables if absent")
    options = arguments.parse_args(argv)
    suffixes: list[Suffix] = [suffix for suffix in get_args(Suffix) if suffix[1:] in options.forms]
    for folder in options.folders:
        try:
            drawn = kept_figures(folder)
        except ValueError as error:
            arguments.error(str(error))
        out = options.out / folder.name if options.out else folder
        write_figures(drawn, out, columns=options.columns, forms=suffixes)
        print("\n".join(str(out / name) for name in drawn))


if __name__ == "__main__":
    main()
