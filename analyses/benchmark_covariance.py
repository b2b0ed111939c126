"""Key covariances: one pass for several layers against passes for one layer at a time, in one run; and convergence.

`speed.csv`: the library's one pass against whole forward passes that read one layer each from TransformerLens' cache,
and against passes of the library for one layer each, which stop after it. `convergence.csv` and its figure: what
`KeyCovariance.report` tells at growing numbers of tokens, and how nearly C^-1 k, as it is and shrunk, has the direction
that the most tokens give (the median over the fingerprint's keys; the most tokens hold the fewer).
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import torch

import rome_lens as rl
from rome_lens.models import Model

from .common.figures import write_figures
from .common.manifest import write_manifest
from .common.measuring import measured
from .common.options import parser, read_csv, write_csv
from .common.study_figures import plot_convergence
from .plain.covariance import plain_second_moment

LENGTH, BATCH = 256, 4096


def facts_text() -> str:
    """The prompts of the package's facts: a little text that is always at hand."""
    records = rl.load_builtin_records()
    prompts = [[record.fact.text, *record.paraphrase_prompts, *record.neighborhood_prompts] for record in records]
    return "\n".join(prompt for group in prompts for prompt in group)


def compare(model: Model, layers: Sequence[int], text: str, tokens: int) -> pd.DataFrame:
    """Seconds of the three ways, how many times those of the one pass, and the largest relative difference to it."""
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:tokens]

    def collect(chosen: Sequence[int], count: int = tokens) -> dict[int, rl.KeyCovariance]:
        return rl.collect_covariance(
            model, chosen, texts=text, tokens=count, sequence_length=LENGTH, tokens_per_batch=BATCH
        )

    collect(layers, min(tokens, BATCH))  # warms up
    together, once = measured(lambda: collect(layers))
    stopped, one_by_one = measured(lambda: {layer: collect([layer])[layer] for layer in layers})
    plain, whole = measured(
        lambda: {
            layer: plain_second_moment(model, layer, ids, LENGTH, pieces_at_once=BATCH // LENGTH, progress=True)
            for layer in layers
        }
    )

    def difference(others: dict[int, torch.Tensor]) -> float:
        found = {layer: covariance.second_moment for layer, covariance in together.items()}
        return max(((others[layer] - found[layer]).norm() / found[layer].norm()).item() for layer in layers)

    ways = [
        ("one pass for all layers", once, 0.0),
        ("a pass for each layer, stopped", one_by_one, difference({n: c.second_moment for n, c in stopped.items()})),
        ("a whole pass for each layer, plain", whole, difference(plain)),
    ]
    return pd.DataFrame(
        {
            "way": way,
            "layers": " ".join(map(str, layers)),
            "tokens": tokens,
            "seconds": spent.seconds,
            "times_one_pass": spent.seconds / once.seconds,
            "largest_relative_difference": largest,
            "peak_mb": spent.peak_mb,
        }
        for way, spent, largest in ways
    )


def convergence(model: Model, layers: Sequence[int], text: str, counts: Sequence[int]) -> pd.DataFrame:
    """A report for each layer and number of tokens, the numbers ascending."""
    found = {count: rl.collect_covariance(model, layers, texts=text, tokens=count) for count in counts}
    return pd.DataFrame(
        {
            "layer": layer,
            **vars(found[count][layer].report()),
            "oas_intensity": found[count][layer].shrunk().shrinkage,
            "cosine_with_most": agreement(found[count][layer], found[counts[-1]][layer]),
            "shrunk_cosine_with_most": agreement(found[count][layer].shrunk(), found[counts[-1]][layer]),
        }
        for layer in layers
        for count in counts
    )


def agreement(covariance: rl.KeyCovariance, best: rl.KeyCovariance) -> float | None:
    """Median over the fingerprint's keys of the cosine between both C^-1 k; None if one covariance is singular."""
    assert best.fingerprint is not None
    try:
        pairs = [(covariance.solve(key), best.solve(key)) for key in best.fingerprint]
    except rl.errors.CovarianceError:
        return None
    return torch.stack([torch.cosine_similarity(one, other, dim=0) for one, other in pairs]).median().item()


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    return {"convergence": plot_convergence(read_csv(folder / "convergence.csv"))}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/benchmark_covariance")
    arguments.add_argument("--layers", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    arguments.add_argument("--texts", type=Path, help="a text file; the prompts of the package's facts if absent")
    arguments.add_argument("--tokens", type=int, default=8192, help=f"for the speeds, in units of {LENGTH}")
    arguments.add_argument("--counts", type=int, nargs="+", default=[1000 * 2**i for i in range(7)])
    options = arguments.parse_args(argv)

    model = rl.load_model(options.model)
    text = "".join(rl.edit.texts_from_file(options.texts)) if options.texts else facts_text()
    available = len(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    tokens = min(options.tokens, available) // LENGTH * LENGTH
    speed = compare(model, options.layers, text, tokens)
    write_csv(speed, options.out / "speed.csv")
    print(speed.to_string(index=False), end="\n\n")
    counts = sorted(count for count in options.counts if count <= available)
    frame = convergence(model, options.layers, text, counts)
    write_csv(frame, options.out / "convergence.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model)
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
