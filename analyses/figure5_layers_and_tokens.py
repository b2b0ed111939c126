"""Which layer and which token to edit (paper figure 5): ROME at each of them, on records, with the scores of each.

What was done is kept in OUT/records.csv after each edit and not done again; covariances in their folder. The default
edit layer of SmolLM2-135M was chosen this way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pandas as pd
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

import rome_lens as rl
from analyses.batch_editing import kept_covariances
from analyses.files import add_record_arguments, chosen_records, parser, write_csv
from rome_lens.edit.contexts import EditedToken
from rome_lens.files import new_file

TOKENS: tuple[EditedToken, ...] = ("subject_first", "subject_last", "subject_first_after_last")


def sweep(
    model: HookedTransformer,
    records: Sequence[rl.EditRecord],
    covariances: dict[int, rl.KeyCovariance],
    tokens: Sequence[EditedToken],
    contexts: tuple[str, ...],
    kept: Path,
) -> pd.DataFrame:
    """The scores of every record before an edit and after one at each token and layer: those kept, and the others.

    Adds to the columns of `score_records` token and layer, empty and -1 before the edit.
    """
    rows = pd.read_csv(kept, keep_default_na=False) if kept.exists() else pd.DataFrame(columns=["method", "case_id"])
    cells = [("", -1), *((token, layer) for layer in covariances for token in tokens)]
    wanted = [(token, layer, record) for token, layer in cells for record in records]
    done = set(zip(rows["method"], rows["case_id"], strict=True))
    for token, layer, record in tqdm(wanted, desc="sweep", unit="edit"):
        name = f"{token}, layer {layer}" if token else "base"
        if (name, record.case_id) in done:
            continue
        if token:
            config = rl.RomeConfig(layer=layer, token=token, contexts=contexts)
            edit = rl.rome(
                model,
                record.request,
                covariance=covariances[layer],
                config=config,
                on_unhealthy="ignore",
                progress=False,
            )
            with edit.applied(model):
                scores = rl.score_records(model, [record], name=name, progress=False)
        else:
            scores = rl.score_records(model, [record], progress=False)
        rows = pd.concat([rows, scores.assign(token=token, layer=layer)], ignore_index=True)
        write_csv(rows, kept)
    numbers, names = {record.case_id for record in records}, [f"{token}, layer {layer}" for token, layer in cells[1:]]
    return rows[rows["case_id"].isin(numbers) & rows["method"].isin(["base", *names])]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m")
    arguments.add_argument("--layers", type=int, nargs="+", default=[2, 4, 6, 8])
    arguments.add_argument("--edited", choices=get_args(EditedToken), nargs="+", default=TOKENS, help="which tokens")
    arguments.add_argument(
        "--covariances", type=Path, default=Path("results/covariances"), help="layer4.safetensors..."
    )
    arguments.add_argument("--texts", type=Path, help="a text file, for the covariances that are not there yet")
    arguments.add_argument("--tokens", type=int, default=100_000, help="tokens of it to use")
    arguments.add_argument("--out", type=Path, default=Path("results/figure5"))
    add_record_arguments(arguments, count=12)
    options = arguments.parse_args()

    model = rl.load_model(options.model)
    asked = chosen_records(options)
    records = [record for record in asked if not record.request.prompt.endswith("{}")]  # no token after the subject
    if len(records) < len(asked):
        print(f"{len(asked) - len(records)} records are left out: their prompts end with the subject")
    covariances = kept_covariances(model, options)
    contexts = rl.sample_contexts(model)
    rows = sweep(model, records, covariances, options.edited, contexts, options.out / "records.csv")
    places = rows[["method", "token", "layer"]].drop_duplicates()
    summary = places.merge(rl.summarize(rows[["case_id", "method", "metric", "value"]]), on="method")
    write_csv(summary, options.out / "scores.csv")
    with new_file(options.out / "figure.html", overwrite=True) as temporary:
        rl.plot_layers_and_tokens(summary).write_html(temporary, include_plotlyjs="cdn")
    print(summary[["token", "layer", "n", "S", "ES", "PS", "NS"]].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
