"""Does tracing tell where to edit? Per fact: the tracing effect at the edit layer beside the scores of the edit.

Hase et al. 2023 (arXiv 2301.04213) found that the two are hardly related. For each record whose true object the model
predicts: the indirect effect of the restored MLPs (a window of layers), and of the residual state, at the subject's
last token and the edit's layer, as it is and as a fraction of the fact's total effect (clean minus corrupted); and
`score_record` of the edited model, with S, the harmonic mean of ES, PS and NS. `correlations.csv` has Spearman's rank
correlation and R2 of each pair, with 95 % bootstrap intervals over facts. Traces, edits and scores are kept as they are
made, so a run that was stopped goes on where it was. --edits may be the folder of another analysis' edits.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.data.records import subject_range
from rome_lens.intervals import bootstrap_interval
from rome_lens.models import Model
from rome_lens.storage import open_journal, plain

from .common.figures import write_figures
from .common.kept_edits import kept_edits, made_with
from .common.manifest import write_manifest
from .common.options import (
    add_covariance_arguments,
    add_record_arguments,
    listed_records,
    parsed,
    parser,
    predicted,
    read_csv,
    rome_covariance,
    write_csv,
)
from .common.study_figures import plot_tracing_against_editing

TRACED = ("mlp_effect", "mlp_fraction", "resid_effect", "resid_fraction")
LEAST_TOTAL = 0.05  # total effects below it have no fractions
SCORES = ("S", "ES", "PS", "NS", "EM", "PM", "NM")


def traced(
    model: Model, record: rl.EditRecord, layer: int, *, out: Path, window: int, samples: int
) -> dict[str, float]:
    """The effects of the states at the subject's last token and a layer, and the total effect."""
    last = subject_range(model, record.fact)[1][-1]
    made = rl.trace_facts(
        model,
        [record.fact],
        kinds=["mlp", "resid"],
        out=out,
        positions=[last],
        layers=[layer],
        window=window,
        samples=samples,
        progress=False,
    )
    row: dict[str, float] = {}
    for trace in made.traces:
        effect = float(trace.to_frame()["indirect_effect"].iloc[0])
        fraction = effect / trace.total_effect if trace.total_effect > LEAST_TOTAL else float("nan")
        row |= {f"{trace.kind}_effect": effect, f"{trace.kind}_fraction": fraction}
        row["total_effect"] = trace.total_effect
    return row


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation and R2 of each tracing effect with each score, with intervals; empty where a score is
    the same for all. The intervals resample facts with the ranks that they have among all. R2 cannot be negative, so
    that its interval lies above 0 says nothing.
    """
    rows = []
    for effect in TRACED:
        for score in SCORES:
            pair = frame[[effect, score]].dropna()
            row: dict[str, object] = {"traced": effect, "score": score, "n": len(pair)}
            if (pair.nunique() > 1).all():
                for name, values, power in (("spearman", pair.rank(), 1), ("r2", pair, 2)):
                    row |= _with_interval(name, values.to_numpy(dtype=float), power)
            rows.append(row)
    return pd.DataFrame(rows)


def _with_interval(name: str, pairs: np.ndarray, power: int) -> dict[str, float]:
    """The correlation of two columns, to a power."""
    x, y = ((pairs - pairs.mean(0)) / pairs.std(0)).T
    products = np.stack([x, y, x * x, y * y, x * y], axis=1)

    def correlation(means: np.ndarray) -> np.ndarray:
        mx, my, xx, yy, xy = means.T
        variances = (xx - mx**2) * (yy - my**2)
        variances[variances < 1e-12] = np.nan  # facts drawn that are all alike have none
        return ((xy - mx * my) / np.sqrt(variances))[:, None] ** power

    low, high = bootstrap_interval(products, correlation)
    return {name: correlation(products.mean(0)[None])[0, 0], f"{name}_low": low[0], f"{name}_high": high[0]}


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    frame, table = read_csv(folder / "facts.csv"), read_csv(folder / "correlations.csv")
    return {"tracing_against_editing": plot_tracing_against_editing(frame, table)}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/tracing_against_editing")
    add_record_arguments(arguments, count=30)
    add_covariance_arguments(arguments)
    arguments.add_argument("--edits", type=Path, help="a folder of edits; OUT/edits if absent")
    arguments.add_argument("--window", type=int, default=10, help="MLPs at once")
    arguments.add_argument("--samples", type=int, default=10, help="corrupted runs for each number")
    arguments.add_argument("--seed", type=int, default=0, help="of the edits' contexts")
    options = parsed(arguments, argv, full={"count": 1000})

    model = rl.load_model(options.model)
    listed = listed_records(options)
    records = [listed[i] for i in predicted(model, [record.fact for record in listed], options.count)]
    covariance = rome_covariance(model, options)
    config = rl.RomeConfig(contexts=rl.edit.sample_contexts(model, seed=options.seed), seed=options.seed)
    identity = made_with(model, config, covariance)
    rows = []
    with (
        kept_edits(model, config, options.edits or options.out / "edits", covariance) as edit_of,
        open_journal(options.out / "scores", kind="rome_lens scores 1", identity=identity, read=dict) as journal,
    ):
        for record in tqdm(records, desc="trace, edit and score", unit="record"):
            edit = edit_of(record)
            scored = next((row["scores"] for row in journal.rows if row["record"] == plain(record)), None)
            if scored is None:
                with edit.applied(model):
                    scored = rl.evaluate.score_record(model, record)
                journal.append({"record": plain(record), "scores": scored})
            layer, traces = edit.updates[0].layer, options.out / "traces"
            row = traced(model, record, layer, out=traces, window=options.window, samples=options.samples)
            scores = pd.DataFrame([(record.case_id, "rome", *each) for each in scored.items()])
            summary = rl.summarize(scores.set_axis(["case_id", "method", "metric", "value"], axis=1)).iloc[0]
            names = {"case_id": record.case_id, "subject": record.request.subject, "layer": layer}
            rows.append(names | row | {score: summary[score] for score in SCORES if score in summary})
    frame = pd.DataFrame(rows).reindex(columns=["case_id", "subject", "layer", "total_effect", *TRACED, *SCORES])
    table = correlations(frame)
    write_csv(frame, options.out / "facts.csv")
    write_csv(table, options.out / "correlations.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model, contexts=list(config.contexts or ()))
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
