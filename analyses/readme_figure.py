"""The README's picture: the traces that the demo wrote, side by side. Needs a Chromium browser."""

import subprocess
import tempfile
from pathlib import Path

import pandas as pd

import rome_lens as rl
from analyses.demo import KINDS
from analyses.files import parser
from rome_lens.files import new_file

WIDTHS = (376, 312, 312)  # the first panel has the tokens


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--traces", type=Path, default=Path("results/demo"), help="where the demo wrote")
    arguments.add_argument("--out", type=Path, default=Path("docs/trace.png"))
    arguments.add_argument("--browser", default="chromium", help="its command")
    options = arguments.parse_args()

    figures = [rl.plot_trace(pd.read_csv(options.traces / f"trace_{kind}.csv"), answer="Paris") for kind in KINDS]
    parts = []
    for i, (figure, width) in enumerate(zip(figures, WIDTHS, strict=True)):
        figure.update_layout(width=width)
        figure.update_traces(xgap=0)  # the cells are narrow here
        figure.update_yaxes(showticklabels=i == 0)
        parts.append(figure.to_html(full_html=False, include_plotlyjs=i == 0, config={"displayModeBar": False}))
    height = max(figure.layout.height for figure in figures)
    page = f'<meta charset="utf-8"><body style="margin: 0; display: flex; background: white">{"".join(parts)}</body>'
    with tempfile.TemporaryDirectory() as folder, new_file(options.out, overwrite=True) as temporary:
        html, picture = Path(folder, "page.html"), Path(folder, "page.png")
        html.write_text(page, encoding="utf-8")
        subprocess.run(
            [
                options.browser,
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
                *(f"--user-data-dir={folder}/profile", "--virtual-time-budget=5000"),
                *(f"--window-size={sum(WIDTHS)},{height}", f"--screenshot={picture}", html.as_uri()),
            ],
            check=True,
            capture_output=True,
        )
        temporary.write_bytes(picture.read_bytes())
    print(options.out)


if __name__ == "__main__":
    main()
