"""Does the forecast of an edit's bleed-over come true? Forecast and measured change at neighbourhood prompts.

For each record: the edit; the share of it that each neighbourhood prompt is forecast to get, from the keys alone; then,
with the edit applied, how far the next token's distribution moved, KL(before || after), and by how much the true
object's lead over the new one, p(true) - p(new) (see score_record), rose (`lead_gain`; `lead_change` is its
size). Edits and results are kept as they are made, so a run that was stopped goes on where it was, and other analyses
can use the edits.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.data.records import Continuation
from rome_lens.evaluate.likelihood import mean_log_probabilities
from rome_lens.models import Model
from rome_lens.models.prediction import divergence, next_token_log_probabilities
from rome_lens.storage import open_journal, plain

from .common.figures import write_figures
from .common.kept_edits import kept_edits, made_with
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
from .common.study_figures import plot_bleed_over

FORECASTS = ("share", "size", "last_share")
CHANGES = ("kl", "lead_gain", "lead_change")


def leads(model: Model, record: rl.EditRecord) -> pd.Series:
    """p(true) - p(new) after each neighbourhood prompt."""
    targets = (record.target_true, record.request.target)
    asked = [
        Continuation(prompt, target, space=record.request.space)
        for prompt in record.neighborhood_prompts
        for target in targets
    ]
    p = mean_log_probabilities(model, asked).double().exp().view(-1, 2)
    return pd.Series((p[:, 0] - p[:, 1]).numpy())


def bleed_over(model: Model, record: rl.EditRecord, edit: rl.Edit) -> pd.DataFrame:
    """A row for each neighbourhood prompt: what was forecast, and what changed."""
    prompts = list(record.neighborhood_prompts)
    forecast = (
        rl.evaluate.strongest_bleed_over(rl.evaluate.forecast_bleed_over(model, edit, prompts))
        .set_index("prompt")
        .loc[prompts]
    )
    log_probs, lead = next_token_log_probabilities(model, prompts), leads(model, record)
    with edit.applied(model):
        kl = divergence(log_probs, next_token_log_probabilities(model, prompts))
        lead_gain = leads(model, record) - lead
    forecast = forecast[["layer", "position", "token", *FORECASTS]].reset_index()
    return forecast.assign(case_id=record.case_id, kl=kl.numpy(), lead_gain=lead_gain, lead_change=lead_gain.abs())


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each forecast with each change: over all prompts, and its mean within records."""
    rows = []
    for forecast in FORECASTS:
        for change in CHANGES:
            pair = frame[[forecast, change]]
            within = [part[forecast].rank().corr(part[change].rank()) for _, part in frame.groupby("case_id")]
            over_all = pair.rank().corr().iloc[0, 1]
            rows.append((forecast, change, len(frame), over_all, pd.Series(within).mean()))
    return pd.DataFrame(rows, columns=["forecast", "change", "n", "spearman", "mean_within_record"])


def figures(folder: Path) -> dict[str, go.Figure]:
    """The figures, of the tables in a folder."""
    return {"bleed_over": plot_bleed_over(read_csv(folder / "bleed_over.csv"))}


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/bleed_over")
    add_covariance_arguments(arguments)
    add_record_arguments(arguments, count=100)
    options = parsed(arguments, argv, full={"count": None})

    model = rl.load_model(options.model)
    covariance = rome_covariance(model, options)
    config = rl.RomeConfig(contexts=rl.edit.sample_contexts(model))
    records, identity = chosen_records(options), made_with(model, config, covariance)
    measured = []
    with (
        kept_edits(model, config, options.out / "edits", covariance) as edit_of,
        open_journal(options.out / "records", kind="rome_lens bleed-over 1", identity=identity, read=dict) as journal,
    ):
        for record in tqdm(records, desc="bleed-over", unit="record"):
            row = next((row for row in journal.rows if row["record"] == plain(record)), None)
            if row is None:
                found = bleed_over(model, record, edit_of(record))
                row = {"record": plain(record), "rows": found.to_dict("records")}
                journal.append(row)
            measured += row["rows"]
    frame = pd.DataFrame(measured)
    table = correlations(frame)
    write_csv(frame, options.out / "bleed_over.csv")
    write_csv(table, options.out / "correlations.csv")
    write_figures(figures(options.out), options.out)
    write_manifest(options, model)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
