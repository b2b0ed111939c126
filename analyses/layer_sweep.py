"""Which layer to edit: ROME at several layers, on records, with the scores of each.

The default edit layer of SmolLM2-135M was chosen with this module; the table is in analyses/results/.
"""

from pathlib import Path

import pandas as pd

import rome_lens as rl
from analyses.files import add_record_arguments, chosen_records, parser, write_csv


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m")
    arguments.add_argument("--layers", type=int, nargs="+", default=[2, 4, 6, 8])
    arguments.add_argument("--texts", type=Path, required=True, help="a text file for the covariances")
    arguments.add_argument("--tokens", type=int, default=100_000, help="tokens of it to use")
    arguments.add_argument("--out", type=Path, default=Path("results/layer_sweep.csv"))
    add_record_arguments(arguments, count=12)
    options = arguments.parse_args()

    model = rl.load_model(options.model)
    records = chosen_records(options)
    covariances = rl.collect_covariance(
        model, options.layers, texts=rl.texts_from_file(options.texts), tokens=options.tokens
    )
    contexts = rl.sample_contexts(model)
    frames: list[pd.DataFrame] = []
    for layer in options.layers:
        config = rl.RomeConfig(layer=layer, contexts=contexts)

        def edit(record: rl.EditRecord, layer: int = layer, config: rl.RomeConfig = config) -> rl.Edit:
            return rl.rome(model, record.request, covariance=covariances[layer], config=config, progress=False)

        frame = rl.evaluate(model, records, method=edit, name=f"layer {layer}")
        frames.append(frame if not frames else frame[frame["method"] != "base"])
        write_csv(rl.summarize(pd.concat(frames)), options.out)
    print(pd.read_csv(options.out)[["method", "n", "S", "ES", "PS", "NS", "EM", "PM", "NM"]].to_string(index=False))


if __name__ == "__main__":
    main()
