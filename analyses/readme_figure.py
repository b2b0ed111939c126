"""The README's picture: the traces that the demo wrote, side by side."""

from pathlib import Path

import pandas as pd

import rome_lens as rl
from analyses.demo import KINDS
from analyses.figures import write_figure
from analyses.files import parser


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--traces", type=Path, default=Path("results/demo"), help="where the demo wrote")
    arguments.add_argument("--out", type=Path, default=Path("docs/trace.png"))
    options = arguments.parse_args()

    frame = pd.concat([pd.read_csv(options.traces / f"trace_{kind}.csv") for kind in KINDS])
    write_figure(rl.plot_traces(frame, answer="Paris"), options.out, suffixes=[options.out.suffix])
    print(options.out)


if __name__ == "__main__":
    main()
