"""`recommend_layers`: which layer to edit in a model, from evidence."""

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm.auto import tqdm

from rome_lens.checking import check_seed, check_whole, checked
from rome_lens.data.readers.question_bank import load_question_bank
from rome_lens.data.records import EditRecord, Fact, subject_range
from rome_lens.edit.covariance.collect import collect_covariance
from rome_lens.edit.covariance.corpora import texts_from_model
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.methods.rome import RomeConfig
from rome_lens.edit.presets.table import nearest_preset
from rome_lens.evaluate.layers.candidates import candidate_layers
from rome_lens.evaluate.layers.cost import forecast_seconds
from rome_lens.evaluate.layers.facts import known_records, to_trace_and_edit
from rome_lens.evaluate.layers.halving import sweep_layers
from rome_lens.locate.effects import average_effects
from rome_lens.locate.many_facts import trace_facts
from rome_lens.locate.roles import LAST_SUBJECT
from rome_lens.models import Model, check_layer, check_model, output_matrix

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CANDIDATES = 8
_KEYS_A_NEURON = 10  # tokens for each of d_mlp: where covariances of 7B models settle (arXiv 2506.04226)
_SAMPLES = 3


@checked
@dataclass(frozen=True, eq=False)
class LayerRecommendation:
    """What `recommend_layers` gives.

    Attributes:
        config: for `rome`, with the recommended layer.
        covariance: of that layer.
        table: a row for each layer of the model: layer; effect, effect_low, effect_high, the average indirect effect of
            MLPs restored at the subject's last token, with its 95 % interval; and for the layers that were edited what
            `summarize` gives (n records, S, ES, PS, NS, ...).
    """

    config: RomeConfig
    covariance: KeyCovariance = field(repr=False)
    table: pd.DataFrame = field(repr=False)

    @property
    def layer(self) -> int:
        """The recommended layer."""
        return self.covariance.layer

    def plot(self) -> "go.Figure":
        """The evidence: effects and scores by layer; see `plot_layers`."""
        from rome_lens.plots import plot_layers

        return plot_layers(self)


@checked
def recommend_layers(
    model: Model,
    facts: Sequence[EditRecord] | None = None,
    *,
    texts: str | Iterable[str] | None = None,
    config: RomeConfig | None = None,
    candidates: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    traced: int = 50,
    edited: int = 24,
    tokens: int | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> LayerRecommendation:
    """Finds the layer that ROME edits best in a model: by traces, then by real edits of other facts.

    Tracing alone does not tell where to edit (Hase et al. 2023, arXiv 2301.04213). So the layers with the largest
    effects are candidates, with a preset's and some spread over the depth, and each is edited: all candidates on a
    quarter of the facts, the better half of them on half, the better half of these on all. The highest S wins; among
    equals, the largest mean margin.

    Args:
        model: Model to run; its weights are bit for bit what they were afterwards.
        facts: Records with paraphrases and neighbours; those that the model knows are used. None: the package's
            question bank (`load_question_bank`), which is in English.
        texts: Text for the covariances, as in `collect_covariance`. None: texts that the model writes, which takes
            longer and holds what the model finds likely.
        config: Numbers of the edits; its layer is not used. None: `RomeConfig()`.
        candidates: Layers to edit, each of which takes 32 d_mlp^2 bytes for its covariance; None: at most 8 are chosen.
        layers: Layers that the candidates are chosen among; None: all.
        traced: How many facts to trace, at most.
        edited: How many others to edit, at most.
        tokens: Keys for each covariance; None: 10 d_mlp.
        seed: Of which facts are traced and which are edited.
        out: Folder for this recommendation alone, made if missing; a call with the same arguments goes on there.
        progress: Shows bars, and before them about how long it will take.

    Returns:
        A LayerRecommendation: a ready config, the layer's covariance, and the evidence as a table and a figure.

    Raises:
        ValueError: a record lacks paraphrases or neighbours, the model knows fewer than 2 of the facts, no such layer,
            or the texts hold too few tokens.
        CovarianceError: a covariance is singular: more tokens are needed.
    """
    check_model(model)
    check_whole(traced=traced, edited=edited, tokens=tokens)
    check_seed(seed)
    if candidates is not None:
        for layer in _not_empty(candidates):
            check_layer(model, layer)
    if layers is not None:
        for layer in _not_empty(layers, "layers"):
            check_layer(model, layer)
        candidates = candidates if candidates is not None or len(set(layers)) > _CANDIDATES else layers
        if outside := set(candidates or ()) - set(layers):
            raise ValueError(f"candidates has {sorted(outside)}, which are not among layers. Give one of the two.")
    width = len(output_matrix(model, 0))
    known = _known(model, facts)
    to_trace, to_edit = to_trace_and_edit(known, traced=traced, edited=edited, seed=seed)
    config = replace(config or RomeConfig(), layer=None)
    tokens = _KEYS_A_NEURON * width if tokens is None else tokens
    if progress:
        number = min(_CANDIDATES, model.cfg.n_layers) if candidates is None else len(set(candidates))
        _say_how_long(model, to_trace, to_edit, config, number, tokens, written=texts is None)
    used = replace(config, contexts=config.contexts_for(model))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out)
        effects = _effects(model, [record.fact for record in to_trace], folder / "traces", progress)
        if candidates is None:
            preset = nearest_preset(model, "rome")
            by_layer = dict(zip(effects["layer"], effects["effect"], strict=True))
            among = {layer: effect for layer, effect in by_layer.items() if layers is None or layer in layers}
            suggested = [layer for layer in (preset.layers if preset else ()) if layer in among]
            candidates = candidate_layers(among, suggested, count=_CANDIDATES)
        covariances = collect_covariance(
            model,
            sorted(set(candidates)),
            texts=texts_from_model(model) if texts is None else texts,
            tokens=tokens,
            out=folder / "covariances",
            progress=progress,
        )
        scores = sweep_layers(model, to_edit, covariances, used, out=folder / "edits", progress=progress)
    best = int(scores["layer"][0])
    table = effects.merge(scores.drop(columns="method"), on="layer", how="left")
    return LayerRecommendation(replace(config, layer=best), covariances[best], table)


def _not_empty(layers: Sequence[int], name: str = "candidates") -> Sequence[int]:
    if not layers:
        raise ValueError(f"{name} is empty, expected at least 1 layer, or None to have them chosen.")
    return layers


def _known(model: Model, facts: Sequence[EditRecord] | None) -> list[EditRecord]:
    """The records that the model knows. Raises ValueError if they cannot tell how good an edit is, or are too few."""
    records = load_question_bank() if facts is None else facts
    for record in records:
        if not (record.paraphrase_prompts and record.neighborhood_prompts):
            raise ValueError(
                f"The record {record.case_id} in facts ({record.request.text!r}) has {len(record.paraphrase_prompts)} "
                f"paraphrases and {len(record.neighborhood_prompts)} neighbours, expected at least 1 of each, without "
                "which an edit cannot be judged. Leave it out."
            )
    known = known_records(model, [replace(record, case_id=i) for i, record in enumerate(records)])
    if len(known) < 2:
        raise ValueError(
            f"facts has {len(records)} records, of which {model.cfg.model_name} knows {len(known)}, expected at least "
            "2: some to trace, others to edit. Give facts that it knows, in its language."
        )
    return known


def _effects(model: Model, facts: Sequence[Fact], out: Path, progress: bool) -> pd.DataFrame:
    """The average indirect effect of MLPs at the subject's last token: layer, effect, effect_low, effect_high.

    Only that row of each fact's grid is computed.
    """
    places = {fact: subject_range(model, fact)[1].stop - 1 for fact in facts}
    traces = []
    for place, some in groupby(sorted(places, key=lambda fact: places[fact]), key=lambda fact: places[fact]):
        traced = trace_facts(
            model, list(some), kinds=["mlp"], positions=[place], samples=_SAMPLES, out=out, progress=progress
        )
        traces += traced.traces
    averages = average_effects(traces)
    last = averages[averages["role"] == LAST_SUBJECT]
    names = {"mean": "effect", "ci_low": "effect_low", "ci_high": "effect_high"}
    return last.rename(columns=names)[["layer", *names.values()]].reset_index(drop=True)


def _say_how_long(
    model: Model,
    to_trace: Sequence[EditRecord],
    to_edit: Sequence[EditRecord],
    config: RomeConfig,
    candidates: int,
    tokens: int,
    *,
    written: bool,
) -> None:
    seconds = forecast_seconds(
        model, to_trace, to_edit, config=config, samples=_SAMPLES, candidates=candidates, tokens=tokens
    )
    parts = ", ".join(f"{name} {each / 60:.1f}" for name, each in seconds.items())
    extra = ", and what the model needs to write the texts" if written else ""
    tqdm.write(
        f"{len(to_trace)} facts to trace, {len(to_edit)} to edit at up to {candidates} layers: about "
        f"{sum(seconds.values()) / 60:.1f} minutes ({parts}){extra}.",
        file=sys.stderr,
    )
