"""Paper figure 4, with measured numbers: one fact is rewritten step by step.

k* is the subject's key; C^-1 k* decides who else gets the update (`keys.csv`: how like k* the keys of other tokens
are, and which share of the update they get); v* is what the layer has to answer (`steps.csv`: the objects'
probabilities while the answer to k* goes from v to v*); then what the edit does inside the model (`lens.csv`) and to
its answers (`outcome.csv`). `numbers.csv` has the sizes of all vectors. The edit is kept, so that a second run is fast.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import torch

import rome_lens as rl
from rome_lens.edit.search.key import subject_keys
from rome_lens.evaluate.likelihood import mean_log_probabilities
from rome_lens.models import Model, mlp_keys, mlp_output, pad
from rome_lens.models.tokens import tokenize

from .common.figures import write_figures
from .common.kept_edits import kept_edits
from .common.manifest import write_manifest
from .common.options import (
    add_covariance_arguments,
    add_record_arguments,
    chosen_records,
    parser,
    read_csv,
    rome_covariance,
    write_csv,
)
from .common.rewrite_figures import plot_rewrite

FRACTIONS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25)


def groups(record: rl.EditRecord) -> dict[str, list[str]]:
    """The prompts that are looked at."""
    prompts = {"prompt": [record.request.text], "paraphrases": list(record.paraphrase_prompts)}
    return prompts | {"neighbours": list(record.neighborhood_prompts)}


def probabilities(model: Model, record: rl.EditRecord, prompts: Sequence[str]) -> pd.DataFrame:
    """The geometric mean of each object's token probabilities after each prompt: object, probability."""
    objects = {"new": record.request.target, "true": record.target_true}
    asked = [(name, rl.data.Continuation(prompt, text)) for name, text in objects.items() for prompt in prompts]
    found = mean_log_probabilities(model, [continuation for _, continuation in asked]).exp()
    return pd.DataFrame({"object": [name for name, _ in asked], "probability": found.numpy()})


@torch.no_grad()
def keys(model: Model, record: rl.EditRecord, edit: rl.Edit) -> pd.DataFrame:
    """For each token of each prompt the cosine of its key with k*, and its share of the update: a row for each."""
    layer = edit.updates[0].layer
    written = subject_keys(model, layer, record.request, edit.config["contexts"]).mean(0)
    frames = []
    for group, prompts in groups(record).items():
        for prompt in dict.fromkeys(prompts):
            forecast = rl.evaluate.forecast_bleed_over(model, edit, [prompt])
            found = mlp_keys(model, *pad([tokenize(model, prompt).ids]), [layer])[layer][0].float()
            cosines = torch.cosine_similarity(found, written, dim=-1).tolist()
            frames.append(forecast[["prompt", "position", "token", "share"]].assign(group=group, cosine=cosines))
    return pd.concat(frames)


def steps(model: Model, record: rl.EditRecord, edit: rl.Edit) -> pd.DataFrame:
    """The objects' probabilities with a fraction of the update: W k* is then v + fraction (v* - v)."""
    rows = []
    for fraction in FRACTIONS:
        updates = tuple(replace(update, right=fraction * update.right) for update in edit.updates)
        with replace(edit, updates=updates).applied(model):
            rows.append(probabilities(model, record, [record.request.text]).assign(fraction=fraction))
    return pd.concat(rows)


def outcome(model: Model, record: rl.EditRecord, condition: str) -> pd.DataFrame:
    """The objects' probabilities after every prompt, on the model as it is."""
    found = [probabilities(model, record, prompts).assign(group=group) for group, prompts in groups(record).items()]
    return pd.concat(found).assign(condition=condition)


@torch.no_grad()
def numbers(model: Model, edit: rl.Edit) -> pd.DataFrame:
    """The sizes of the vectors in Eq. 2: name, value, meaning."""
    update, (request,) = edit.updates[0], edit.requests
    key = subject_keys(model, update.layer, request, edit.config["contexts"]).mean(0)
    before = mlp_output(model, update.layer, key).cpu()
    added = (key.cpu() @ update.left) @ update.right
    rows = [
        ("layer", update.layer, "edited block"),
        ("|k*|", key.norm().item(), "mean key over the contexts (Eq. 3)"),
        ("|v|", before.norm().item(), "what the layer answered to k*"),
        ("|v*|", (before + added).norm().item(), "what it answers after the edit (Eq. 4)"),
        ("|v* - v|", added.norm().item(), "the difference"),
        ("cos(v, v*)", torch.cosine_similarity(before, before + added, dim=0).item(), "their directions"),
        ("cos(k*, C^-1 k*)", (key.cpu() @ update.left).item() / key.norm().item(), "how far C turns the key"),
    ]
    figures = edit.health.to_dict() if edit.health else {}
    rows += [(name, value, "EditHealth") for name, value in figures.items()]
    return pd.DataFrame(rows, columns=["name", "value", "meaning"])


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    names = ("keys", "steps", "lens", "outcome", "contributions")
    keys, steps, lens, outcome, contributions = (read_csv(folder / f"{name}.csv") for name in names)
    return {
        "figure4": plot_rewrite(keys, steps, lens, outcome),
        "comparison": rl.plots.plot_comparison(lens, contributions),
    }


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/figure4")
    add_record_arguments(arguments, count=1)
    add_covariance_arguments(arguments)
    arguments.add_argument("--seed", type=int, default=0, help="of the edit's contexts")
    options = arguments.parse_args(argv)

    model = rl.load_model(options.model)
    record = chosen_records(options)[0]
    covariance = rome_covariance(model, options)
    with kept_edits(model, rl.RomeConfig(seed=options.seed), options.out / "edits", covariance) as edit_of:
        edit = edit_of(record)
    before = outcome(model, record, "before")
    with edit.applied(model):
        after = outcome(model, record, "after")
    compared = rl.compare_models(model, edit, [record.request.text], progress=False)
    frames = {
        "keys": keys(model, record, edit),
        "steps": steps(model, record, edit),
        "lens": compared.lens,
        "contributions": compared.contributions,
        "outcome": pd.concat([before, after]),
    }
    for name, frame in frames.items():
        write_csv(frame, options.out / f"{name}.csv")
    sizes = numbers(model, edit)
    write_csv(sizes, options.out / "numbers.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model, prompt=record.request.text, target=record.request.target)
    print(sizes.to_string(index=False))


if __name__ == "__main__":
    main()
