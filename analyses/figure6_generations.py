"""Paper figure 6: what the model writes about a subject before and after an edit.

The same seed is used for each state of the model. The edit is kept, so that a second run makes only the texts.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

import rome_lens as rl
from rome_lens.models import Model

from .common.figures import write_figures
from .common.kept_edits import kept_edits
from .common.manifest import write_manifest
from .common.options import (
    add_covariance_arguments,
    add_record_arguments,
    chosen_records,
    parsed,
    parser,
    read_csv,
    rome_covariance,
    write_csv,
)
from .common.rewrite_figures import plot_texts

BEFORE, AFTER = "before the edit", "after the edit"


def texts(model: Model, prompts: Sequence[str], name: str, length: int, seed: int) -> pd.DataFrame:
    """What the model writes as it is: prompt, model, text."""
    return pd.DataFrame(
        {"prompt": prompts, "model": name, "text": rl.evaluate.generate_texts(model, prompts, length=length, seed=seed)}
    )


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    frame = read_csv(folder / "texts.csv")
    words = {frame["new"].iloc[0]: "#0072b2", frame["true"].iloc[0]: "#d55e00"}
    return {"figure6": plot_texts(frame, highlight=words)}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/figure6")
    add_record_arguments(arguments, count=1)
    add_covariance_arguments(arguments)
    arguments.add_argument("--prompts", type=int, default=3, help="how many of the record's generation prompts")
    arguments.add_argument("--length", type=int, default=50, help="tokens of each text, its prompt included")
    arguments.add_argument("--seed", type=int, default=0, help="of the sampling and of the edit's contexts")
    options = parsed(arguments, argv, full={"prompts": 10, "length": 100})

    model = rl.load_model(options.model)
    record = chosen_records(options)[0]
    covariance = rome_covariance(model, options)
    prompts = list(dict.fromkeys(record.generation_prompts))[: options.prompts]
    with kept_edits(model, rl.RomeConfig(seed=options.seed), options.out / "edits", covariance) as edit_of:
        edit = edit_of(record)
    frames = [texts(model, prompts, BEFORE, options.length, options.seed)]
    with edit.applied(model):
        frames.append(texts(model, prompts, AFTER, options.length, options.seed))
    frame = pd.concat(frames).assign(new=record.request.target, true=record.target_true)
    write_csv(frame, options.out / "texts.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model, prompt=record.request.text, target=record.request.target)
    print(frame[["prompt", "model", "text"]].to_string(index=False))


if __name__ == "__main__":
    main()
