"""Which layer should ROME edit? Traces and edits of facts that the model knows, by layer, and the layer they favour.

It says about how long it will take before it starts. What was done is kept in OUT/run and not done again.
"""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import plotly.graph_objects as go

import rome_lens as rl

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.options import TEXTS, parser, read_csv, write_csv


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    return {"layers": rl.plots.plot_layers(read_csv(folder / "layers.csv"))}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/recommend_layers")
    arguments.add_argument("--records", type=Path, help="a file in CounterFact's schema; the question bank if absent")
    arguments.add_argument("--texts", type=Path, help="a text file for the covariances; WikiText-103 if absent")
    arguments.add_argument("--tokens", type=int, help="tokens of it to use; 10 d_mlp if absent")
    arguments.add_argument("--candidates", type=int, nargs="+", help="layers to edit; chosen by traces if absent")
    arguments.add_argument("--traced", type=int, default=50, help="how many facts to trace")
    arguments.add_argument("--edited", type=int, default=24, help="how many others to edit")
    options = arguments.parse_args(argv)

    model = rl.load_model(options.model)
    started = perf_counter()
    found = rl.recommend_layers(
        model,
        rl.load_counterfact(options.records) if options.records else None,
        texts=rl.edit.texts_from_file(options.texts) if options.texts else rl.edit.texts_from_dataset(*TEXTS),
        tokens=options.tokens,
        candidates=options.candidates,
        traced=options.traced,
        edited=options.edited,
        out=options.out / "run",
    )
    seconds = round(perf_counter() - started, 1)
    write_csv(found.table, options.out / "layers.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model, layer=found.layer, recommending_seconds=seconds)
    shown = found.table[["layer", "effect", "n", "S", "ES", "PS", "NS"]].round(3)
    print(f"{shown.to_string(index=False)}\nlayer {found.layer}, in {seconds} s")


if __name__ == "__main__":
    main()
