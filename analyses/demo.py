"""The whole path on SmolLM2-135M: trace a fact, rewrite it, and score rewrites; report.html shows it on one page.

Needs no network and no GPU, and takes about four minutes on two idle cores. first_look.html, a trace of fewer samples,
is there within half a minute.
"""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jinja2
import pandas as pd
import plotly.graph_objects as go
import torch

import rome_lens as rl
from rome_lens.models import Kind, Model, sample_text
from rome_lens.models.prediction import most_probable, next_token_log_probabilities
from rome_lens.models.tokens import tokenize
from rome_lens.plots.saving import HTML
from rome_lens.storage import check_new_file, new_file

from .common.manifest import write_manifest
from .common.options import parser, write_csv

KINDS: tuple[Kind, ...] = ("resid", "mlp", "attn")
BEFORE, AFTER = "before", "after"
TABLES = ("predictions", "continuations", "scores", "summary")
EDIT, FIRST, REPORT = "eiffel_tower_to_rome.safetensors", "first_look.html", "report.html"
FILES = (*(f"trace_{kind}.csv" for kind in KINDS), *(f"{name}.csv" for name in TABLES), EDIT, FIRST, REPORT)
TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Findings:
    """What the page shows.

    Attributes:
        traces: of the first record's fact, one for each kind.
        records: those that were edited; the first is the one that is traced and shown in detail.
        edit: of the first record.
        predictions: when, prompt, rank, token, probability.
        continuations: when, prompt, text.
        scores: what `score_edits` gives.
        summary: what `summarize` gives.
    """

    traces: Sequence[rl.CausalTrace]
    records: Sequence[rl.EditRecord]
    edit: rl.Edit
    predictions: pd.DataFrame
    continuations: pd.DataFrame
    scores: pd.DataFrame
    summary: pd.DataFrame


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    print(
        f"Traces a fact, rewrites it and scores {options.facts + 1} rewrites: with --facts 10 about four minutes on "
        f"two idle cores, several times that on a busy machine. {options.out / FIRST}, the first picture, comes within "
        f"half a minute, {options.out / REPORT} at the end.",
        flush=True,
    )
    model = rl.load_model()
    report = demo(model, options.out, facts=options.facts, seed=options.seed)
    write_manifest(options, model)
    print(report)


def demo(model: Model, out: Path, *, facts: int = 10, seed: int = 0, samples: int = 10, new_tokens: int = 30) -> Path:
    """Does the work, writes FILES into `out`, and gives the path of the page. The model stays as it is.

    Args:
        model: SmolLM2-135M, the model that a covariance and a fact set come with.
        out: a folder; what it holds under the same names is replaced.
        facts: how many facts to score besides the Eiffel Tower's.
        seed: of the contexts, the continuations and the bootstrap.
        samples: corrupted runs of the traces.
        new_tokens: length of the continuations.
    """
    eiffel, *others = rl.load_builtin_records()
    records = [eiffel, *_spread(others, facts, after=eiffel)]
    first = rl.causal_trace(model, eiffel.fact, kind="mlp", samples=min(2, samples))
    rl.plots.save(first.plot(), out / Path(FIRST).stem, suffixes=[".html"], overwrite=True)
    print(
        f"{out / FIRST}: where the fact is, from {first.config.samples} samples. Next: all maps, the edit, the scores."
    )
    traces = list(rl.locate.trace_kinds(model, eiffel.fact, kinds=KINDS, samples=samples).values())
    for trace in traces:
        write_csv(trace.to_frame(), out / f"trace_{trace.kind}.csv")

    config = rl.RomeConfig(contexts=rl.edit.sample_contexts(model, seed=seed), seed=seed)
    edit = rl.rome(model, eiffel.request, config=config)
    edit.save(out / EDIT, overwrite=True)
    predictions, continuations = [_predict(model, eiffel, BEFORE)], [_write(model, eiffel, BEFORE, new_tokens, seed)]
    with edit.applied(model):
        predictions.append(_predict(model, eiffel, AFTER))
        continuations.append(_write(model, eiffel, AFTER, new_tokens, seed))

    def method(model: Model, request: rl.EditRequest) -> rl.Edit:
        return edit if request == eiffel.request else rl.rome(model, request, config=config, progress=False)

    scores = rl.score_edits(model, records, {"rome": method})
    summary = rl.summarize(scores, seed=seed)
    findings = Findings(traces, records, edit, pd.concat(predictions), pd.concat(continuations), scores, summary)
    for name in TABLES:
        write_csv(getattr(findings, name), out / f"{name}.csv")
    with new_file(out / REPORT, overwrite=True) as temporary:
        command = f"rome-lens demo --out {out} --facts {facts} --seed {seed}"
        temporary.write_text(page(findings, command), encoding="utf-8")
    return out / REPORT


def page(findings: Findings, command: str) -> str:
    """The page as HTML that needs nothing from anywhere else."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    packages = ("torch", "transformer-lens", "transformers", "numpy", "pandas", "plotly")
    named = findings.summary.assign(method=["before the edit", "after the edit"])
    figures = {f"trace-{trace.kind}": trace.plot() for trace in findings.traces} | {
        "scores": rl.plots.plot_scores(named)
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        findings=findings,
        record=findings.records[0],
        trace=findings.traces[0],
        edit=findings.edit,
        strongest={trace.kind: _strongest(trace) for trace in findings.traces},
        predictions=_by_prompt(findings.predictions),
        continuations=_by_prompt(findings.continuations),
        summary=findings.summary.set_index("method").to_dict("index"),
        scores=findings.scores.pivot(index="case_id", columns=["metric", "method"], values="value").T.to_dict(),
        figures=_as_html(figures),
        command=command,
        files=[name for name in FILES if name != REPORT],
        versions={"rome_lens": rl.__version__, "Python": platform.python_version()}
        | {package: version(package) for package in packages},
    )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; ends the program with a message if the files could not be written."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=Path("results/demo"), help="the folder to write into")
    arguments.add_argument("--facts", type=int, default=10, help="facts to score besides the Eiffel Tower's")
    arguments.add_argument("--seed", type=int, default=0, help="of the contexts, the continuations and the bootstrap")
    options = arguments.parse_args(argv)
    if not 0 <= options.facts < len(rl.load_builtin_records()):
        most = len(rl.load_builtin_records()) - 1
        arguments.exit(2, f"--facts is {options.facts}, expected a number from 0 to {most}.\n")
    try:
        for name in FILES:
            check_new_file(options.out / name, overwrite=True)
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        arguments.exit(2, f"{error}\n")
    return options


def _spread(records: Sequence[rl.EditRecord], count: int, *, after: rl.EditRecord) -> list[rl.EditRecord]:
    """The first record of each relation, then the second, and so on; `after` is the first of its own relation."""
    seen = {after.relation: 1}
    turns = []
    for record in records:
        turns.append(seen.get(record.relation, 0))
        seen[record.relation] = turns[-1] + 1
    order = sorted(range(len(records)), key=turns.__getitem__)
    return [records[i] for i in order[:count]]


def _predict(model: Model, record: rl.EditRecord, when: str, top: int = 5) -> pd.DataFrame:
    """The most probable next tokens after the record's own prompt, a paraphrase and two neighbours."""
    rows = []
    for prompt in (record.request.text, *record.paraphrase_prompts[:1], *record.neighborhood_prompts[:2]):
        best = most_probable(model, next_token_log_probabilities(model, [prompt])[0].exp(), top)
        rows += [(when, prompt, rank, token, p) for rank, (token, p) in enumerate(best, start=1)]
    return pd.DataFrame(rows, columns=["when", "prompt", "rank", "token", "probability"])


def _write(model: Model, record: rl.EditRecord, when: str, new_tokens: int, seed: int) -> pd.DataFrame:
    """A sampled continuation of each of the record's open starts."""
    rows = []
    for prompt in record.generation_prompts:
        tokens = torch.tensor([tokenize(model, prompt).ids], device=model.cfg.device)
        rows.append((when, prompt, sample_text(model, tokens, new_tokens=new_tokens, seed=seed, top_k=5)[0]))
    return pd.DataFrame(rows, columns=["when", "prompt", "text"])


def _strongest(trace: rl.CausalTrace) -> dict:
    """The cell of a trace's grid with the highest probability."""
    return trace.to_frame().nlargest(1, "prob").to_dict("records")[0]


def _by_prompt(frame: pd.DataFrame) -> list[tuple[str, dict[str, list[dict]]]]:
    """Each prompt with its rows before and after the edit."""
    return [
        (str(prompt), {when: part[part["when"] == when].to_dict("records") for when in (BEFORE, AFTER)})
        for prompt, part in frame.groupby("prompt", sort=False)
    ]


def _as_html(figures: dict[str, go.Figure]) -> dict[str, str]:
    """The figures as HTML fragments, plotly.js in the first of them."""
    return {
        name: figure.to_html(full_html=False, include_plotlyjs=i == 0, config=HTML, div_id=name)
        for i, (name, figure) in enumerate(figures.items())
    }


if __name__ == "__main__":
    main()
