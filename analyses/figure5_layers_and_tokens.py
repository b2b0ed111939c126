"""Which layer and which token to edit (paper figure 5): ROME at each of them, on records, with the scores of each.

What was done is kept in OUT/records and not done again; covariances in their folder. The default
edit layer of SmolLM2-135M was chosen this way.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import pandas as pd
import plotly.graph_objects as go

import rome_lens as rl
from rome_lens.edit.search.contexts import EditedToken
from rome_lens.evaluate.measuring import BASE, Method

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.methods import QUIET
from .common.options import (
    add_collecting_arguments,
    add_record_arguments,
    chosen_records,
    kept_covariances,
    parsed,
    parser,
    read_csv,
    write_csv,
)
from .common.study_figures import plot_layers_and_tokens

TOKENS: tuple[EditedToken, ...] = ("subject_first", "subject_last", "subject_first_after_last")


def methods_of_cells(
    covariances: dict[int, rl.KeyCovariance], tokens: Sequence[EditedToken], contexts: tuple[str, ...]
) -> dict[str, Method]:
    """ROME at each token and layer, by the cell's name."""
    return {
        f"{token}, layer {layer}": partial(
            rl.rome,
            covariance=covariance,
            config=rl.RomeConfig(layer=layer, token=token, contexts=contexts),
            **QUIET,
        )
        for layer, covariance in covariances.items()
        for token in tokens
    }


def with_cells(summary: pd.DataFrame) -> pd.DataFrame:
    """With the columns token and layer, "" and -1 before the edits."""
    cells = [name.split(", layer ") if name != BASE else ("", -1) for name in summary["method"]]
    token, layer = zip(*cells, strict=True)
    return summary.assign(token=token, layer=[int(each) for each in layer])


def beside_effects(summary: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """The scores of edits at the subject's last token beside what its MLPs do, by layer: see `plot_layers`."""
    traced = effects[(effects["kind"] == "mlp") & (effects["role"] == "last subject token")]
    names = {"mean": "effect", "ci_low": "effect_low", "ci_high": "effect_high"}
    edited = summary[summary["token"] == "subject_last"].drop(columns=["token", "method"])
    return traced.rename(columns=names)[["layer", *names.values()]].merge(edited, on="layer", how="left")


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    summary = read_csv(folder / "scores.csv").fillna({"token": ""})
    drawn = {"figure5": plot_layers_and_tokens(summary)}
    if (folder / "layers.csv").is_file():
        drawn["layers"] = rl.plots.plot_layers(read_csv(folder / "layers.csv"))
    return drawn


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/figure5")
    arguments.add_argument("--layers", type=int, nargs="+", default=[2, 4, 6, 8])
    add_collecting_arguments(arguments)
    arguments.add_argument("--edited", choices=get_args(EditedToken), nargs="+", default=TOKENS, help="which tokens")
    add_record_arguments(arguments, count=12)
    arguments.add_argument("--effects", type=Path, help="average_effects.csv of figure 2, to show beside")
    options = parsed(arguments, argv, full={"layers": None, "count": 100})

    model = rl.load_model(options.model)
    asked = chosen_records(options)
    records = [record for record in asked if not record.request.prompt.endswith("{}")]  # no token after the subject
    if len(records) < len(asked):
        print(f"{len(asked) - len(records)} records are left out: their prompts end with the subject")
    covariances = kept_covariances(model, options.layers or range(model.cfg.n_layers), options)
    methods = methods_of_cells(covariances, options.edited, rl.edit.sample_contexts(model))
    summary = with_cells(rl.summarize(rl.score_edits(model, records, methods, out=options.out / "records")))
    write_csv(summary, options.out / "scores.csv")
    if options.effects:
        write_csv(beside_effects(summary, read_csv(options.effects)), options.out / "layers.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model)
    print(summary[["token", "layer", "n", "S", "ES", "PS", "NS"]].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
