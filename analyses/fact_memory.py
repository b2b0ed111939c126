"""What n facts cost in a memory beside the weights, in the weights, and in memories that are gated otherwise.

All methods get the same keys and residuals in one layer: `memory` is FactMemory, `ledger` the exact update of the same
facts, `memit` and `alphaedit` their closed forms for all facts at once (which is what their batches with earlier keys
come to), `grace` opens where the plain distance to the nearest key is small (arXiv 2211.11031), and `kernel-p` adds
R^T (kappa(K, K) + lambda I)^-1 kappa(K, k) with kappa(k, k') = (k C^-1 k') cos_C(k, k')^(p - 1), of which p = 1 is
MEMIT. `ultraedit` writes the same requests by a gradient.

The targets of the first facts are searched for (--searched; kept in OUT/targets), and those facts' records are scored;
the others are there as neighbours: they have keys of their own, and the residuals of the searched ones in turn. KL is
that of the next token at the subjects that ship which are nearest to a scored fact, before || after.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.edit.methods.closed_forms import alphaedit_factor, emmet_factor, memit_factor
from rome_lens.edit.methods.memory import FactMemory
from rome_lens.edit.search.targets import MemitTargets, subject_states
from rome_lens.models import Model, added_by_key, in_float64, model_identity
from rome_lens.models.prediction import divergence, next_token_log_probabilities
from rome_lens.storage import Journal, open_journal, plain

from .common.manifest import write_manifest
from .common.measuring import operations_per_token
from .common.options import (
    add_covariance_arguments,
    add_perplexity_arguments,
    add_record_arguments,
    listed_records,
    parsed,
    parser,
    perplexity_text,
    rome_covariance,
    write_csv,
)

KERNELS = ("kernel-3", "kernel-9")
METHODS = ("base", "memory", "ledger", "memit", "alphaedit", "grace", *KERNELS, "ultraedit")
NEAR = 4  # subjects for each scored fact
Change = Callable[[Tensor], Tensor | None]


@dataclass
class Facts:
    """n facts, the first of which were searched for, and what the methods make of them."""

    model: Model
    covariance: rl.KeyCovariance
    targets: MemitTargets
    folder: Path | None

    @cached_property
    def memory(self) -> FactMemory:
        config = rl.edit.SearchConfig(**self.targets.search, contexts=self.targets.contexts)
        memory = FactMemory(self.model, covariance=self.covariance, config=config, out=self.folder)
        memory.add(self.targets.requests, targets=self.targets)
        return memory

    @cached_property
    def keys(self) -> tuple[Tensor, Tensor]:
        """K and R, of one row for each subject."""
        return self.memory.keys_and_residuals()

    def applied(self, method: str) -> AbstractContextManager[Any]:
        """The model with the facts."""
        if method == "base":
            return nullcontext()
        if method == "memory":
            return self.memory.applied(self.model)
        if method == "ultraedit":
            config = rl.edit.UltraEditConfig()
            edit = rl.edit.ultraedit(
                self.model, self.targets.requests, config=config, on_unhealthy="ignore", progress=False
            )
            return edit.applied(self.model)
        return added_by_key(self.model, self.memory.layer, self._change(method))

    def _change(self, method: str) -> Change:
        keys, residuals = self.keys
        if method == "grace":
            return partial(_nearest, keys, residuals, _half_of_the_gap(keys))
        if method in KERNELS:
            return _kernel(keys, residuals, self.covariance, int(method.partition("-")[2]))
        wide = in_float64(keys)
        left = {
            "ledger": partial(emmet_factor, wide, self.covariance),
            "memit": partial(memit_factor, wide, self.covariance, rl.MemitConfig().weight(keys.shape[1])),
            "alphaedit": partial(alphaedit_factor, wide, self.covariance, 2e-2, 10.0),
        }[method]().float()
        return lambda entering: entering.float() @ left @ residuals


def _half_of_the_gap(keys: Tensor) -> float:
    """Half of the median distance between a key and the nearest other."""
    distances = torch.cdist(keys, keys).fill_diagonal_(torch.inf)
    return distances.amin(-1).median().item() / 2


def _nearest(keys: Tensor, residuals: Tensor, reach: float, entering: Tensor) -> Tensor:
    distances, nearest = torch.cdist(entering.float().flatten(0, 1), keys).min(-1)
    added = residuals[nearest] * (distances < reach)[:, None]
    return added.unflatten(0, entering.shape[:2])


def _kernel(keys: Tensor, residuals: Tensor, covariance: rl.KeyCovariance, power: int) -> Change:
    whitening = covariance.whitened(torch.eye(keys.shape[1]).double())
    known = covariance.whitened(in_float64(keys))

    def kappa(entering: Tensor) -> Tensor:
        white = in_float64(entering) @ whitening
        return white @ known.T * (normalize(white, dim=-1) @ normalize(known, dim=-1).T) ** (power - 1)

    weight = rl.MemitConfig().weight(keys.shape[1])
    gram = kappa(keys) + weight * torch.eye(len(keys)).double()
    factors = torch.linalg.solve(gram, in_float64(residuals))
    return lambda entering: (kappa(entering) @ factors).float()


def searched_and_others(
    model: Model, options: argparse.Namespace, layer: int, records: Sequence[Any], others: Sequence[rl.EditRequest]
) -> MemitTargets:
    """Targets of the records' requests, searched for, and of the others, whose residuals are theirs in turn."""
    config = rl.edit.BatchConfig(
        contexts=("{}",) if not options.contexts else None,
        context_lengths=((10, options.contexts or 1),),
        early_stop_loss=options.early_stop_loss,
    )
    asked = [record.request for record in records]
    found = rl.edit.memit_targets(
        model, asked, layer=layer, config=config, out=options.targets or options.out / "targets"
    )
    if not others:
        return found
    states = subject_states(model, layer, others).cpu()
    lent = [found.values[i % len(found.values)] for i in range(len(others))]
    borrowed = [
        replace(value, vector=state + value.vector - value.initial, initial=state)
        for state, value in zip(states, lent, strict=True)
    ]
    return replace(found, requests=(*found.requests, *others), values=(*found.values, *borrowed))


def chosen(records: Sequence[Any], others: Sequence[Any], searched: int) -> tuple[list[Any], list[rl.EditRequest]]:
    """The records to search for, and requests of others; no prompt twice."""
    asked = {record.request.text: record for record in records[:searched]}
    more = {
        each.request.text: each.request for each in (*records[searched:], *others) if each.request.text not in asked
    }
    return list(asked.values()), list(more.values())


class Rows:
    """What was measured, by method, number of facts, and what: kept as it comes."""

    def __init__(self, journal: Journal[dict[str, Any]]):
        self._journal = journal
        self.all = {tuple(row["of"]): row["found"] for row in journal.rows}

    def get(self, of: tuple[str, int, str], measure: Callable[[], Any]) -> Any:
        if of not in self.all:
            self.all[of] = measure()
            self._journal.append({"of": list(of), "found": self.all[of]})
        return self.all[of]


def measure(
    rows: Rows, model: Model, facts: Facts, method: str, records: Sequence[Any], options: argparse.Namespace
) -> None:
    """The scores of each record, the perplexity, and KL at near subjects."""
    size, text = len(facts.targets.requests), perplexity_text(options)
    names = [*(str(record.case_id) for record in records), "kl", *(["perplexity"] if text else [])]
    if all((method, size, name) in rows.all for name in names):
        return
    prompts = near_prompts(model, facts.covariance, records[: options.near])
    before = next_token_log_probabilities(model, prompts)
    with facts.applied(method):
        if text:
            tokens = options.perplexity_tokens
            rows.get(
                (method, size, "perplexity"), lambda: rl.evaluate.perplexity(model, text, tokens=tokens, progress=False)
            )
        kl = lambda: divergence(before, next_token_log_probabilities(model, prompts)).tolist()  # noqa: E731
        rows.get((method, size, "kl"), kl)
        for record in tqdm(records, desc=f"{method}, {size} facts", unit="record"):
            rows.get((method, size, str(record.case_id)), partial(rl.evaluate.score_record, model, record))


def near_prompts(model: Model, covariance: rl.KeyCovariance, records: Sequence[Any]) -> list[str]:
    """Each record's prompt about the subjects that ship which a plain edit would reach most."""
    found = [
        rl.edit.near_subjects(model, record.request, covariances={covariance.layer: covariance}, most=NEAR, least=0.0)
        for record in records
    ]
    return [prompt for each in found for prompt in each["prompt"]]


def table(rows: Rows, model: Model) -> pd.DataFrame:
    """A row for each method and number of facts; of the memory also the share of a pass that its comparisons take."""
    scores, rest = [], []
    for (method, size, name), found in rows.all.items():
        if method == "opened":
            continue
        known = {"method": method, "facts": size}
        if name in ("perplexity", "share_of_pass"):
            rest.append(known | {name: found})
        elif name == "kl":
            rest.append(known | {"near_kl": sum(found) / len(found)})
        else:
            scores += [
                {"method": f"{size} {method}", "case_id": int(name), "metric": metric, "value": value}
                for metric, value in found.items()
            ]
    summary = rl.summarize(pd.DataFrame(scores))
    summary[["facts", "method"]] = summary["method"].str.split(" ", n=1, expand=True)
    summary["facts"] = summary["facts"].astype(int)
    more = pd.DataFrame(rest).groupby(["method", "facts"], sort=False).first().reset_index()
    wanted = [
        "facts",
        "method",
        "n",
        *(f"{metric}{end}" for metric in ("ES", "PS", "NS") for end in ("", "_low", "_high")),
    ]
    order = {method: i for i, method in enumerate(METHODS)}
    found = summary[wanted].merge(more, on=["method", "facts"], how="left")
    return found.sort_values(["facts", "method"], key=lambda column: column.map(lambda each: order.get(each, each)))


def share_of_pass(model: Model, memory: FactMemory) -> float:
    """Operations of comparing a token's key with all gates, divided by those of a forward pass."""
    block, unembedding = operations_per_token(model)
    gates = memory._all_gates
    compared = 2 * gates.whitening.numel() + 2 * len(gates.spellings) * gates.screened
    return compared / (block * model.cfg.n_layers + unembedding)


def opened(memory: FactMemory, record: Any) -> list[dict[str, Any]]:
    """For each of a record's prompts, whether its own fact is told of anywhere in it, and whether another one is."""
    kinds = {
        "prompt": [record.request.text],
        "paraphrase": record.paraphrase_prompts,
        "neighbour": record.neighborhood_prompts,
    }
    rows = []
    for kind, prompts in kinds.items():
        for prompt in prompts:
            found = memory.explain(prompt)
            told = set(found.loc[found["opens"], "prompt"])
            own = float(record.request.text in told)
            rows.append({"kind": kind, "own": own, "other": float(bool(told - {record.request.text}))})
    return rows


def shares(rows: Rows) -> pd.DataFrame:
    """By the number of facts and the kind of prompt: at what share the own fact is told of, and another one."""
    found = [
        {"method": f"{size} {row['kind']}", "case_id": name, "metric": metric, "value": row[metric]}
        for (what, size, name), each in rows.all.items()
        if what == "opened"
        for row in each
        for metric in ("own", "other")
    ]
    means = pd.DataFrame(found).groupby(["method", "case_id", "metric"], sort=False)["value"].mean().reset_index()
    table = rl.summarize(means)
    table[["facts", "prompts"]] = table["method"].str.split(" ", expand=True)
    columns = [
        "facts",
        "prompts",
        "n",
        *(f"{metric}{end}" for metric in ("own", "other") for end in ("", "_low", "_high")),
    ]
    return table[columns]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, out="results/fact_memory")
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=[m for m in METHODS if m != "ultraedit"])
    arguments.add_argument("--facts", type=int, nargs="+", default=[100, 1000], help="how many facts, in turn")
    arguments.add_argument("--others", type=Path, help="a file in any known schema: more facts, that are not searched")
    arguments.add_argument("--searched", type=int, default=100, help="records whose targets are searched for")
    arguments.add_argument("--targets", type=Path, help="the folder of that search; OUT/targets if absent")
    arguments.add_argument("--contexts", type=int, default=0, help="sampled contexts of the search")
    arguments.add_argument("--early-stop-loss", type=float, default=0.2, help="of the search")
    arguments.add_argument("--near", type=int, default=10, help="scored facts whose near subjects are looked at")
    add_covariance_arguments(arguments)
    add_perplexity_arguments(arguments, tokens=20_000)
    add_record_arguments(arguments, count=100)
    options = parsed(arguments, argv, full={"count": 1000, "searched": 1000, "facts": [100, 1000, 10_000]})

    model = rl.load_model(options.model)
    covariance = rome_covariance(model, options)
    others = rl.load_records(options.others) if options.others else []
    records, more = chosen(listed_records(options), others, options.searched)
    scored = records[: options.count]
    targets = searched_and_others(model, options, covariance.layer, records, more[: max(options.facts)])
    asked = {name: plain(getattr(options, name)) for name in ("near", "perplexity_tokens")}
    identity = (
        model_identity(model) | asked | {"covariance": plain(covariance), "text": plain(perplexity_text(options))}
    )
    identity |= {"targets": plain(targets.parts()[0]["vectors"][: len(records)])}
    with open_journal(
        options.out / "rows", kind="rome_lens fact memory study 1", identity=identity, read=dict
    ) as journal:
        rows = Rows(journal)
        for size in options.facts:
            if size < len(records):
                raise SystemExit(f"--facts has {size}, expected at least the {len(records)} facts of --searched.")
            part = replace(targets, requests=targets.requests[:size], values=targets.values[:size])
            facts = Facts(model, covariance, part, options.out / f"memory-{size}")
            for method in options.methods:
                measure(rows, model, facts, method, scored, options)
            if "memory" in options.methods:
                rows.get(("memory", size, "share_of_pass"), partial(share_of_pass, model, facts.memory))
                for record in scored:
                    rows.get(("opened", size, str(record.case_id)), partial(opened, facts.memory, record))
        found = table(rows, model)
        gates = shares(rows) if "memory" in options.methods else None
    write_csv(found, options.out / "table.csv")
    if gates is not None:
        write_csv(gates, options.out / "gates.csv")
    write_manifest(options, model)
    print(found.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
