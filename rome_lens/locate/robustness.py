"""Do the conclusions of a trace depend on how it was made? (Zhang and Nanda 2024, arXiv 2309.16042)"""

import os
from collections.abc import Mapping, Sequence

import pandas as pd

from rome_lens.checking import checked
from rome_lens.data.records import Fact
from rome_lens.locate.corruption import Corruption, CorruptionFunction, GaussianNoise
from rome_lens.locate.effects import average_effects
from rome_lens.locate.many_facts import trace_facts
from rome_lens.locate.metrics import Metric, MetricName
from rome_lens.locate.own import name_of
from rome_lens.models import Kind, Model


@checked
def robustness_report(
    model: Model,
    facts: Sequence[Fact],
    *,
    kind: Kind = "mlp",
    corruptions: Mapping[str, Corruption | CorruptionFunction] | None = None,
    metrics: Sequence[MetricName | Metric] = ("prob", "logprob", "kl"),
    windows: Sequence[int] = (1, 5, 10),
    samples: int = 10,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Traces the facts with every corruption, metric and window, and compares the average effects.

    Args:
        model: Model to run; left unchanged.
        facts: Facts to trace; those that the model does not predict are left out.
        kind: States to restore.
        corruptions: By name; by default Gaussian noise of 3 sigma and of 1 sigma.
        metrics: What to read. "kl" enters with its sign reversed, so that larger is better for every metric.
        windows: Numbers of layers.
        samples: Number of corrupted runs to average over.
        out: Folder for the traces, from which a stopped report resumes; as in `trace_facts`.
        progress: Show progress bars.

    Returns:
        A row for each setting: kind, corruption, metric, window, n (facts), peak_role and peak_layer (where the average
        indirect effect is largest), peak_effect, and agreement: Spearman's rank correlation of the average effects,
        over roles and layers, with those of the first row.

    Raises:
        ValueError: the model predicts none of the facts; and as `trace_facts`.
    """
    if not windows:
        raise ValueError("windows is empty, expected at least one number of layers.")
    corruptions = corruptions or {"3 sigma": GaussianNoise(), "1 sigma": GaussianNoise(sigmas=1.0)}
    rows = []
    first: pd.Series | None = None
    for name, corruption in corruptions.items():
        for window in windows:
            made = trace_facts(
                model,
                facts,
                kinds=[kind],
                metrics=metrics,
                out=out,
                progress=progress,
                corruption=corruption,
                window=window,
                samples=samples,
            )
            if not made.traces:
                raise ValueError("The model predicts the answer of none of the facts. Give facts that it knows.")
            for metric in map(name_of, metrics):
                chosen = [trace for trace in made.traces if trace.metric == metric]
                effect = average_effects(chosen).set_index(["role", "layer"])["mean"] * (-1 if metric == "kl" else 1)
                first = effect if first is None else first
                agreement = effect.rank().corr(first.rank())  # Spearman's
                settings = (kind, name, metric, window, len(chosen))
                rows.append((*settings, *effect.idxmax(), effect.max(), agreement))  # type: ignore[misc]
    names = ["kind", "corruption", "metric", "window", "n", "peak_role", "peak_layer", "peak_effect", "agreement"]
    return pd.DataFrame(rows, columns=names)
