"""A memory of facts beside the weights: where a fact's subject is read, its residual is added, and nowhere else.

MEMIT, EMMET and the ledger put keys and residuals into one matrix, which answers every key a little. Here they stay
apart. A subject's key k_i is that of its last token, as in Eq. 3, and a token's key k is compared with it in the
coordinates in which ordinary keys have no preferred direction, C = L L^T:

    cos_C(k, k_i) = k C^-1 k_i / (|k|_C |k_i|_C) = <L^-1 k, L^-1 k_i> / (|L^-1 k| |L^-1 k_i|)

A gate opens where this reaches its threshold; of several the nearest does, and r_i = z_i - h_i (`memit_targets`) is
added to the residual stream. A token at which no gate opens is not touched.

k_i. At the start of a text keys are others than within one (their cosines are .4 to .95). So the gate's direction lies
midway between the two: the mean of the subject's keys within the `PLACES`, and its key at a text's start.

The threshold is each gate's own: midway between the lowest cosine among its own keys and the highest among those of
near subjects (the bank of `near_subjects`, the memory's other subjects, the first tokens of texts), but not below
`LEAST_COSINE`, and never above its own keys: a fact opens at its own prompt.

The first token. Without BOS, attention makes the keys of all first tokens nearly alike, and their states much longer
than others. A subject that is one such token gets a second gate for that place, with a threshold between its key and
those of other first tokens; and where its prompt begins with it, a residual for each of the two places.

Several facts about one subject meet at one token, often before the relation is read. The mean of their residuals is
added: their sum, which grows with their number, tells them less often, and the nearest alone tells one of them.

The keys of a layer do not depend on what is added after it, so a memory does not disturb its own gates.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from weakref import WeakSet

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from rome_lens.checking import checked
from rome_lens.data.readers.subjects import load_subjects
from rome_lens.data.records import PLACE, EditRequest, fill
from rome_lens.edit.artifact.edit import Edit, finite_matrix
from rome_lens.edit.artifact.health import EditHealth, OnUnhealthy, report_problems, update_norms
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import covariances_for
from rome_lens.edit.methods.closed_forms import emmet_factor
from rome_lens.edit.methods.near import kept_bank_keys, same_name
from rome_lens.edit.methods.requests import Requests, as_requests
from rome_lens.edit.search.key import subject_activations
from rome_lens.edit.search.settings import BatchConfig, SearchConfig
from rome_lens.edit.search.targets import MemitTargets, check_requests, memit_targets, search_numbers
from rome_lens.edit.search.value import Value, search_figures
from rome_lens.errors import EditError, EditWarning, FormatError, warn
from rome_lens.models import (
    EditableModel,
    Model,
    added_by_key,
    find_matrix,
    in_float64,
    key_name,
    mlp_keys,
    model_identity,
    name_of,
    norms_mlp_output,
)
from rome_lens.models.labels import token_texts
from rome_lens.models.tokens import tokenize
from rome_lens.storage import digest, load_tensors, open_checkpoint, plain, save_tensors

MEMORY = "rome_lens fact memory 1"
_FACTS = {"layer": int, "contexts": list, "search": dict, "ends": list, "requests": list, "gates": list}
_FILE = _FACTS | {"covariance": dict, "made_for": str, "model": str}
PLACES = (
    "About {}",
    "Who or what is {}",
    "Here is what people say of {}",
    "It was in the news that {}",
    "As everybody knows, {}",
    "The text below is about {}",
    "In the words of a friend of mine, {}",
)
_NOT_FIRST = "As everybody knows, {}"
LEAST_COSINE = 0.5
_VECTORS = ("key", "direction", "residual")
_FIRST_TOKENS = 256  # of a text, spread over the vocabulary
_SEARCHED_AT_ONCE = 64  # on a GPU
_AT_ONCE = 1024  # rows whose cosines are in memory together
_SCREENED = 3  # of the coordinates, one of so many is looked at first
_ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class _Gate:
    """One spelling of a fact's subject.

    Attributes:
        name: the spelling.
        first: whether it is for the first token of a text alone.
        key: [d_mlp], float32: the mean of its keys.
        direction: [d_mlp], float32: its direction in coordinates of length 1 where C is the identity.
        residual: [d_model], float32: what it adds.
        own: the lowest cosine among its own keys.
        near: the highest among those of subjects in the bank and of first tokens.
    """

    name: str
    first: bool
    key: Float[Tensor, " d_mlp"] = field(repr=False)
    direction: Float[Tensor, " d_mlp"] = field(repr=False)
    residual: Float[Tensor, " d_model"] = field(repr=False)
    own: float
    near: float


@dataclass(frozen=True, eq=False)
class _Gates:
    """All gates of a memory: one for each spelling (and its place: see `_Gate.first`), with the mean residual of the
    facts about it. `whitening` takes a key to coordinates in which C is the identity, of which the `screened` first
    are compared at first.
    """

    spellings: tuple[tuple[str, bool], ...]
    requests: tuple[tuple[EditRequest, ...], ...]
    keys: Float[Tensor, "gate d_mlp"]
    near: Float[Tensor, " gate"]
    whitening: Float[Tensor, "d_mlp d_mlp"]
    directions: Float[Tensor, "gate d_mlp"]
    thresholds: Float[Tensor, " gate"]
    residuals: Float[Tensor, "gate d_model"]
    screened: int

    def on(self, device: torch.device) -> "_Gates":
        """The same on a device."""
        names = ("whitening", "directions", "thresholds", "residuals")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def nearest(
        self, keys: Float[Tensor, "n d_mlp"], opened: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """For each key the gate that it opens, or else the nearest one, and its cosine."""
        cosines = torch.cat([self._unit(part) @ self.directions.T for part in keys.split(_AT_ONCE)])
        shown = opened.where(opened >= 0, cosines.argmax(-1))
        return shown, cosines.gather(-1, shown[:, None])[:, 0]

    def opened(self, keys: Float[Tensor, "n d_mlp"]) -> Int[Tensor, " n"]:
        """For each key the nearest gate that it opens, or -1.

        Of many gates only the first coordinates are compared at first, in which they differ most; by the inequality of
        Cauchy and Schwarz the others can add no more than the product of what is left of both lengths.
        """
        return torch.cat([self._opened(self._unit(part)) for part in keys.split(_AT_ONCE)])

    def _opened(self, units: Float[Tensor, "n d_mlp"]) -> Int[Tensor, " n"]:
        head, heads = units[:, : self.screened], self.directions[:, : self.screened]
        left = [(1 - each.square().sum(-1)).clamp(min=0).sqrt() for each in (head, heads)]
        possible = head @ heads.T + left[0][:, None] * left[1] >= self.thresholds - _ROUNDING
        row, gate = possible.nonzero(as_tuple=True)
        cosines = (units[row] * self.directions[gate]).sum(-1)
        row, gate, cosines = (each[cosines >= self.thresholds[gate]] for each in (row, gate, cosines))
        best = units.new_full((len(units),), -torch.inf).scatter_reduce(0, row, cosines, "amax")
        row, gate = (each[cosines == best[row]] for each in (row, gate))
        none = len(self.spellings)
        found = torch.full((len(units),), none, device=units.device).scatter_reduce(0, row, gate, "amin")
        return found.where(found < none, -1)

    def _unit(self, keys: Float[Tensor, "n d_mlp"]) -> Float[Tensor, "n d_mlp"]:
        with torch.autocast(keys.device.type, enabled=False):
            return normalize(keys.float() @ self.whitening, dim=-1)


@checked
class FactMemory:
    """Facts that a model says, kept beside its weights: added and withdrawn in any order, and no weight is changed.

    A token at which no fact is told of comes out of the layer bit for bit as without the memory, and a withdrawn fact
    leaves no trace, in memory or on disk. See `explain` for what opens where.

    Two facts about one subject meet at the same token, where the relation may not have been read yet: the mean of their
    residuals is added, so that each is told less surely. Spellings of a subject share its residuals; see `add`.

    Args:
        model: Unedited; run when facts are added, and left unchanged.
        layer: Block after which residuals are added; None: that of the covariance.
        covariance: Covariance of that block's keys; None: the one that ships for the model.
        config: The search for the targets; None: that of `memit`, BatchConfig().
        out: A folder to keep the memory in, made if missing; what is there is gone on with. None: kept in memory only.

    Raises:
        CovarianceError: the covariance is of another layer or model, or singular.
        EditError: the weights are not finite.
        FormatError: the folder holds a memory of another model, layer, covariance or search, or other or damaged files.
        ValueError: the layer does not exist or has no covariance, or another token than the subject's last is searched.
    """

    layer: int
    _out: str | os.PathLike[str] | None
    _identity: dict[str, Any]

    def __init__(
        self,
        model: Model,
        *,
        layer: int | None = None,
        covariance: KeyCovariance | None = None,
        config: SearchConfig | None = None,
        out: str | os.PathLike[str] | None = None,
    ) -> None:
        config = BatchConfig() if config is None else config
        if config.token != "subject_last":
            raise ValueError(
                f"config.token is {config.token!r}, expected 'subject_last': gates read the subject's key."
            )
        if covariance is None:
            covariance = next(iter(covariances_for(model, None).values()))
        layer = covariance.layer if layer is None else layer
        made_for = digest(finite_matrix(model, layer))
        covariance.check(model, layer)
        covariance.whitened(torch.zeros(len(covariance.second_moment)))
        contexts = config.contexts_for(model)
        targets = MemitTargets(layer, contexts, search_numbers(config), (), ())
        self._set(covariance, targets, (), made_for, name_of(model), model)
        if out is not None:
            self._out, self._identity = out, model_identity(model) | self._made_with()
        with self._opened():
            pass

    def _set(
        self,
        covariance: KeyCovariance,
        targets: MemitTargets,
        gates: tuple[tuple[_Gate, ...], ...],
        made_for: str,
        model_name: str,
        model: Model | None,
    ) -> None:
        self.layer = targets.layer
        self._covariance, self._targets, self._gates = covariance, targets, gates
        self._made_for, self._model_name, self._model = made_for, model_name, model
        self._out, self._identity = None, {}
        self._in_force: WeakSet[Any] = WeakSet()
        self._joined: _Gates | None = None

    def _made_with(self) -> dict[str, Any]:
        asked = {"contexts": plain(self._targets.contexts), "search": plain(self._targets.search)}
        return {"layer": self.layer, "covariance": plain(self._covariance.second_moment), **asked}

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The memory on the disk, for this process alone; its facts are read first."""
        with open_checkpoint(self._out, kind=MEMORY, identity=self._identity, facts=_FACTS) as kept:
            if kept.found is not None:
                self._take(*_from_parts(kept.path, *kept.found))
            yield kept

    def _take(self, targets: MemitTargets, gates: tuple[tuple[_Gate, ...], ...]) -> None:
        self._targets, self._gates, self._joined = targets, gates, None

    @property
    def facts(self) -> tuple[EditRequest, ...]:
        """The facts in the memory, in the order in which they came."""
        return self._targets.requests

    requests = facts  # as an Edit calls them

    def __len__(self) -> int:
        """How many facts there are."""
        return len(self.facts)

    def __str__(self) -> str:
        """The layer, and how many facts there are."""
        return f"FactMemory of {self._model_name}, layer {self.layer}: {len(self)} facts"

    def add(
        self,
        requests: Requests,
        *,
        aliases: Mapping[str, Sequence[str]] | None = None,
        targets: MemitTargets | None = None,
        progress: bool = True,
    ) -> None:
        """Puts facts into the memory. Those that are in it already are left as they are, so that a killed run goes on.

        Args:
            requests: The facts.
            aliases: By subject, other spellings of it, at which the same is told.
            targets: Targets of these facts among others, found by `memit_targets` for this layer with the same search;
                None: they are searched, which is most of the work.
            progress: Shows a bar.

        Raises:
            EditError: the memory is applied to its model, the model's layer is not as it was, or a loss is not finite.
                What was found until then is kept.
            UnavailableError: another run has the folder open, or the disk is full; what was there is kept.
            ValueError: two targets for one prompt, aliases of other subjects, targets of others, a prompt that does not
                fit, or a memory that was loaded without a model.
        """
        model = self._model_as_begun()
        requests, aliases = as_requests(requests), {} if aliases is None else aliases
        if unknown := aliases.keys() - {request.subject for request in requests}:
            raise ValueError(f"aliases are of {sorted(unknown)[:3]}, expected subjects of the requests.")
        with self._opened() as kept:
            there = set(self.facts)
            missing = [request for request in dict.fromkeys(requests) if request not in there]
            check_requests([*self.facts, *missing])
            abouts = {
                request: [replace(request, subject=name) for name in _names(request, aliases)] for request in missing
            }
            given = None if targets is None else self._given(targets, missing)
            at_once = 1 if torch.device(model.cfg.device).type == "cpu" else _SEARCHED_AT_ONCE
            try:
                with tqdm(total=len(missing), desc="memory", unit="fact", disable=not progress) as bar:
                    for start in range(0, len(missing), at_once):
                        part = missing[start : start + at_once]
                        values = given[start : start + at_once] if given is not None else self._searched(model, part)
                        for request, value in zip(part, values, strict=True):
                            gates = [self._gates_of(model, about, value) for about in abouts[request]]
                            self._append(request, value, [gate for each in gates for gate in each])
                        if kept.is_due:
                            kept.save(*_as_parts(self._targets, self._gates))
                        bar.update(len(part))
            finally:
                if len(self) > len(there):
                    kept.save(*_as_parts(self._targets, self._gates))

    def _config(self) -> SearchConfig:
        return SearchConfig(**self._targets.search, contexts=self._targets.contexts)

    def _given(self, targets: MemitTargets, missing: Sequence[EditRequest]) -> tuple[Value, ...]:
        """Of targets, the values of these requests. Raises ValueError or EditError if they are not theirs."""
        values = dict(zip(targets.requests, targets.values, strict=True))
        if absent := [request for request in missing if request not in values]:
            raise ValueError(
                f"targets lack {len(absent)} of the facts, such as {absent[0].text!r}. Find them with memit_targets."
            )
        theirs = replace(targets, requests=tuple(missing), values=tuple(values[request] for request in missing))
        theirs.check_use(missing, self.layer, self._config())
        theirs.check_model(self._known_model())
        return theirs.values

    def _searched(self, model: Model, part: Sequence[EditRequest]) -> tuple[Value, ...]:
        return memit_targets(model, part, layer=self.layer, config=self._config(), progress=False).values

    def _append(self, request: EditRequest, value: Value, gates: Sequence[_Gate]) -> None:
        known = self._targets
        more = replace(known, requests=(*known.requests, request), values=(*known.values, value))
        self._take(more, (*self._gates, tuple(gates)))

    def _gates_of(self, model: Model, about: EditRequest, value: Value) -> list[_Gate]:
        """The gates of a request in one spelling of its subject."""
        places = [replace(about, prompt=place) for place in (PLACE, *PLACES)]
        asked = [(each, PLACE) for each in (*places, about)]
        found = subject_activations(model, key_name(self.layer), self.layer, asked).cpu()
        first, within, bare = found[0], found[1:-1], found[-1]
        others, firsts = self._bank_units(about.subject), self._first_units
        start = self._unit(first)
        if apart := bool((firsts @ start).max() > LEAST_COSINE):
            start = torch.zeros_like(start)
        mean = self._unit(within.mean(0))
        direction = normalize(mean + start, dim=-1)
        left_out = (within.sum(0) - within) / (len(within) - 1)  # a key is compared with a direction made without it
        own = (normalize(self._unit(left_out) + start, dim=-1) * self._unit(within)).sum(-1).tolist()
        own += [] if apart else [(direction @ start).item()]
        own += [] if torch.equal(bare, first) else [(direction @ self._unit(bare)).item()]
        near = torch.cat([others, firsts]) @ direction
        residual = there = value.vector - value.initial
        if apart and torch.equal(bare, first):  # the value is that of a first token
            (other,) = self._searched(model, [replace(about, prompt=fill(_NOT_FIRST, about.prompt))])
            residual = other.vector - other.initial
        name = about.subject
        gates = [_Gate(name, False, within.mean(0), direction, residual, min(own), near.max().item())]
        if apart:
            start = self._unit(first)
            same = firsts @ start > 1 - _ROUNDING  # the same token
            near = torch.cat([others, firsts[~same]]) @ start
            gates.append(_Gate(name, True, first, start, there, 1 - _ROUNDING, near.max().item()))
        return gates

    def _unit(self, keys: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_mlp"]:
        """Keys in coordinates where C is the identity, of length 1."""
        return normalize(self._covariance.whitened(keys), dim=-1).float()

    @cached_property
    def _bank(self) -> tuple[list[str], Float[Tensor, "subject d_mlp"]]:
        subjects = load_subjects()
        keys = kept_bank_keys(self._known_model(), self.layer, subjects)
        return [fact.subject for fact in subjects], self._unit(keys)

    def _bank_units(self, name: str) -> Float[Tensor, "subject d_mlp"]:
        """The keys of subjects that ship and are not the one of this name."""
        names, units = self._bank
        return units[torch.tensor([not same_name(name, other) for other in names])]

    @cached_property
    def _first_units(self) -> Float[Tensor, "token d_mlp"]:
        """The keys of first tokens of texts."""
        model = self._known_model()
        count = min(_FIRST_TOKENS, model.cfg.d_vocab)
        tokens = torch.linspace(0, model.cfg.d_vocab - 1, count).long()[:, None]
        found = mlp_keys(model, tokens, torch.ones_like(tokens), [self.layer])[self.layer][:, 0]
        return self._unit(found.detach().float().cpu())

    @property
    def _all_gates(self) -> _Gates:
        """The gates as they are now, calibrated against each other."""
        if self._joined is None:
            self._joined = _joined(self._covariance, self._targets, self._gates)
        return self._joined

    def withdraw(self, request: EditRequest) -> None:
        """Takes a fact out. The memory is then what it would be if it had never had it.

        Raises:
            UnavailableError: as `add`.
            ValueError: the fact is not in the memory.
        """
        with self._opened() as kept:
            if request not in self.facts:
                raise ValueError(
                    f"{request.text!r} -> {request.target!r} is not among the {len(self)} facts of the memory, or was "
                    "withdrawn before. See memory.facts."
                )
            number = self.facts.index(request)
            targets, gates = self._targets, self._gates
            targets = replace(
                targets,
                requests=targets.requests[:number] + targets.requests[number + 1 :],
                values=targets.values[:number] + targets.values[number + 1 :],
            )
            gates = gates[:number] + gates[number + 1 :]
            kept.save(*_as_parts(targets, gates))
            self._take(targets, gates)

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[EditableModel]:
        """`with memory.applied(model): ...` runs the body on the model with the memory, as it is when the body begins.

        By hooks: no weight is changed. It holds for every run of the model, with a key/value cache too.

        Args:
            model: The memory's model, of TransformerLens or in Hugging Face's classes.

        Raises:
            EditError: the model is of other sizes, or of a family of Hugging Face's that is not known, or the memory is
                applied to it already.

        Warns:
            EditWarning: the layer's output matrix is another than that of the memory's model.
        """
        self._check_fits(model)
        if model in self._in_force:
            raise EditError(f"The memory is applied to {name_of(model)} already. Apply it once.")
        if not len(self):
            yield model
            return
        gates = {torch.device("cpu"): self._all_gates}

        def change(keys: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "token d_model"] | None:
            if keys.device not in gates:
                gates[keys.device] = self._all_gates.on(keys.device)
            here = gates[keys.device]
            opened = here.opened(keys.detach().reshape(-1, keys.shape[-1]))
            return here.residuals[opened] * (opened >= 0)[:, None] if (opened >= 0).any() else None

        self._in_force.add(model)
        try:
            with added_by_key(model, self.layer, change):
                yield model
        finally:
            self._in_force.discard(model)

    def explain(self, text: str) -> pd.DataFrame:
        """What the memory does at each token of a text.

        Returns:
            A row for each token and each fact about the subject that is nearest to it: position, token, subject (in the
            spelling of the gate), prompt, target, cosine, threshold and opens: whether the fact is told of there.

        Raises:
            ValueError: the text does not fit, or the memory was loaded without a model.
        """
        model = self._known_model()
        columns = ["position", "token", "subject", "prompt", "target", "cosine", "threshold", "opens"]
        ids = tokenize(model, text).ids
        if not len(self):
            return pd.DataFrame(columns=columns)
        tokens = torch.tensor([ids])
        keys = mlp_keys(model, tokens, torch.ones_like(tokens), [self.layer])[self.layer][0].detach()
        gates = self._all_gates.on(keys.device)
        opened = gates.opened(keys)
        shown, cosines = gates.nearest(keys, opened)
        rows = []
        for i, label in enumerate(token_texts(model, ids)):
            gate = int(shown[i])
            for request in gates.requests[gate]:
                sure = cosines[i].item(), gates.thresholds[gate].item(), bool(opened[i] >= 0)
                rows.append((i, label, gates.spellings[gate][0], request.text, request.target, *sure))
        return pd.DataFrame(rows, columns=columns)

    def to_frame(self) -> pd.DataFrame:
        """A row for each spelling of each fact's subject: prompt, target, subject, first (whether it is for the first
        token of a text alone), own (the lowest cosine among its own keys), near (the highest among other subjects'),
        threshold, target_probability (at the end of its search).
        """
        columns = ["prompt", "target", "subject", "first", "own", "near", "threshold", "target_probability"]
        rows = []
        if len(self):
            gates = self._all_gates
            numbers = {spelling: i for i, spelling in enumerate(gates.spellings)}
            for request, value, own in zip(self.facts, self._targets.values, self._gates, strict=True):
                probability = search_figures([value])["target_probability"]
                for gate in own:
                    number = numbers[gate.name, gate.first]
                    found = (gate.own, gates.near[number].item(), gates.thresholds[number].item(), probability)
                    rows.append((request.text, request.target, gate.name, gate.first, *found))
        return pd.DataFrame(rows, columns=columns)

    @property
    def health(self) -> EditHealth | None:
        """What the searches say; no weight is changed. None: there are no facts."""
        if not len(self):
            return None
        return EditHealth(
            update_norm=0.0,
            relative_update_norm=0.0,
            **search_figures(self._targets.values),
            condition_number=self._covariance.condition_number,
        )

    def keys_and_residuals(self) -> tuple[Float[Tensor, "spelling d_mlp"], Float[Tensor, "spelling d_model"]]:
        """K and R of the closed forms: for each spelling of a subject its mean key, and the mean residual of its facts.

        Raises:
            ValueError: the memory is empty.
        """
        if not len(self):
            raise ValueError("The memory is empty. Add a fact: memory.add(request).")
        gates = self._all_gates
        chosen = torch.tensor([not first for _, first in gates.spellings])
        return gates.keys[chosen], gates.residuals[chosen]

    def edit(self, *, on_unhealthy: OnUnhealthy = "warn") -> Edit:
        """The same facts in the weights: the least update, in the norm of C, that adds each residual at its key, as a
        ledger computes it. It has a rank for each spelling, and answers other keys in proportion to k C^-1 k_i.

        Args:
            on_unhealthy: What to do if the edit's `health` has problems: EditWarning, EditError, or nothing.

        Raises:
            EditError: the model's layer is not as it was; keys depend on each other; or the edit is unhealthy and
                `on_unhealthy` is "raise". No weight is changed.
            ValueError: the memory is empty, was loaded without a model, or its model norms its MLPs' outputs.
        """
        model, (keys, residuals) = self._model_as_begun(), self.keys_and_residuals()
        if norms_mlp_output(model, self.layer):
            raise ValueError(
                f"{model.cfg.model_name} norms its MLPs' outputs, or scales them, so that a change of the residual "
                "stream has no closed form in their weights. Apply the memory itself."
            )
        factors = {self.layer: (emmet_factor(in_float64(keys), self._covariance).float(), residuals)}
        assert self.health is not None  # there are facts
        health = replace(self.health, **update_norms(model, factors))
        used = {"layer": self.layer, "search": dict(self._targets.search), "contexts": list(self._targets.contexts)}
        edit = Edit.of(model, self.facts, factors, method="memory", config=used, health=health)
        report_problems(health, on_unhealthy, edit=edit)
        return edit

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes a safetensors file with the facts, their gates and the covariance that whitens keys.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        tensors, facts = _as_parts(self._targets, self._gates)
        whitens, known = self._covariance.parts()
        facts |= {"covariance": known, "made_for": self._made_for, "model": self._model_name}
        save_tensors(
            path,
            tensors | {f"covariance.{n}": t for n, t in whitens.items()},
            kind=MEMORY,
            facts=facts,
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: Model | None = None) -> "FactMemory":
        """Reads a file that `save` wrote.

        Args:
            path: The file.
            model: The memory's model, unedited, which adding, explaining and `edit` need; None: the memory is applied
                and withdrawn from only.

        Raises:
            CovarianceError: the model is another.
            FileNotFoundError: there is no such file.
            FormatError: the file is damaged or holds something else.
        """
        tensors, facts = load_tensors(path, kind=MEMORY, facts=_FILE)
        prefix = "covariance."
        whitens = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        covariance = KeyCovariance.of_parts(path, whitens, facts.pop("covariance"))
        made_for, name = facts.pop("made_for"), facts.pop("model")
        parts = {n: t for n, t in tensors.items() if not n.startswith(prefix)}
        memory = cls.__new__(cls)
        memory._set(covariance, *_from_parts(path, parts, facts), made_for, name, model)
        if model is not None:
            covariance.check(model, memory.layer)
        return memory

    def _known_model(self) -> Model:
        if self._model is None:
            raise ValueError(
                "The memory was loaded without a model. Load it with one: FactMemory.load(path, model=...)."
            )
        return self._model

    def _model_as_begun(self) -> Model:
        model = self._known_model()
        if model in self._in_force:
            raise EditError("The memory is applied to its model. Leave the body of memory.applied(model) first.")
        if digest(finite_matrix(model, self.layer)) != self._made_for:
            raise EditError(
                f"The MLP output matrix of layer {self.layer} is not what it was when the memory was begun. Revert the "
                "edits of the model (revert_edits), or begin a memory for it."
            )
        return model

    def _check_fits(self, model: EditableModel) -> None:
        values = find_matrix(model, self.layer, "out").values
        sizes = (
            len(self._covariance.second_moment),
            *(self._targets.values[0].vector.shape if len(self) else values.shape[1:]),
        )
        if tuple(values.shape) != sizes:
            raise EditError(
                f"The memory is of {self._model_name}, with keys and residuals of the sizes {sizes}, but those of "
                f"layer {self.layer} of {name_of(model)} are {tuple(values.shape)}. Apply it to its own model."
            )
        if digest(values) != self._made_for:
            warn(
                f"The memory was made for other weights: layer {self.layer} was {self._made_for[:12]} and is "
                f"{digest(values)[:12]} (SHA-256). Another dtype or folding, or an edit, can be the reason; check with "
                "explain that facts are told where they should be.",
                EditWarning,
            )


def _names(request: EditRequest, aliases: Mapping[str, Sequence[str]]) -> list[str]:
    """The spellings of a request's subject, each once."""
    return list(dict.fromkeys([request.subject, *aliases.get(request.subject, ())]))


@checked
def fact_memory(
    model: Model,
    requests: Requests,
    *,
    covariances: Mapping[int, KeyCovariance] | None = None,
    config: SearchConfig | None = None,
    targets: MemitTargets | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> FactMemory:
    """A FactMemory of these requests, as a method: `score_edits(model, records, {"memory": fact_memory})`.

    Args:
        model: As in FactMemory.
        requests: What to write: one EditRequest or several.
        covariances: Covariances of the keys, by layer, of which there may be one; None: the one that ships.
        config: The search; None: that of `memit`.
        targets: As in `FactMemory.add`.
        on_unhealthy: What to do if the memory's `health` has problems: EditWarning, EditError, or nothing.
        progress: Show a bar.

    Raises:
        CovarianceError, EditError, ValueError: as FactMemory and its `add`.
    """
    covariances = covariances_for(model, covariances)
    if len(covariances) != 1:
        raise ValueError(f"covariances are of the layers {sorted(covariances)}, expected one layer: a memory has one.")
    memory = FactMemory(model, covariance=next(iter(covariances.values())), config=config)
    memory.add(requests, targets=targets, progress=progress)
    if memory.health is not None:
        report_problems(memory.health, on_unhealthy, edit=memory)
    return memory


def _joined(covariance: KeyCovariance, targets: MemitTargets, gates: Sequence[Sequence[_Gate]]) -> _Gates:
    """The gates of all facts, each calibrated against the others."""
    by_spelling: dict[tuple[str, bool], list[tuple[int, _Gate]]] = {}
    for number, those in enumerate(gates):
        for gate in those:
            by_spelling.setdefault((gate.name, gate.first), []).append((number, gate))
    numbers = {spelling: i for i, spelling in enumerate(by_spelling)}
    alike = [[numbers[gate.name, gate.first] for gate in those] for those in gates]
    groups = list(by_spelling.values())
    directions = torch.stack([group[0][1].direction for group in groups])
    own = torch.tensor([min(gate.own for _, gate in group) for group in groups])
    near = torch.tensor([max(gate.near for _, gate in group) for group in groups])
    near = torch.maximum(near, _nearest_others(directions, alike))
    whitening = covariance.whitened(torch.eye(len(covariance.second_moment), dtype=torch.float64))
    width = directions.shape[1]
    if len(groups) > width:  # the coordinates in which the gates differ most come first
        basis = torch.linalg.eigh(in_float64(directions.T @ directions))[1].flip(1)
        whitening, directions = whitening @ basis, (in_float64(directions) @ basis).float()
    return _Gates(
        tuple(by_spelling),
        tuple(tuple(targets.requests[number] for number, _ in group) for group in groups),
        keys=torch.stack([group[0][1].key for group in groups]),
        near=near,
        whitening=whitening.float(),
        directions=directions,
        thresholds=torch.minimum(((own + near) / 2).clamp(min=LEAST_COSINE), own) - _ROUNDING,
        residuals=torch.stack([torch.stack([gate.residual for _, gate in group]).mean(0) for group in groups]),
        screened=width // _SCREENED if len(groups) > width else width,
    )


def _nearest_others(directions: Float[Tensor, "gate d_mlp"], alike: Sequence[Sequence[int]]) -> Float[Tensor, " gate"]:
    """The highest cosine of each gate with one of another subject; `alike` are gates that share a fact."""
    together: dict[int, set[int]] = {}
    for numbers in alike:
        for number in numbers:
            together.setdefault(number, set()).update(numbers)
    parts = []
    for start in range(0, len(directions), _AT_ONCE):
        cosines = directions[start : start + _AT_ONCE] @ directions.T
        for i, row in enumerate(cosines, start):
            row[list(together[i])] = -1.0
        parts.append(cosines.max(-1).values)
    return torch.cat(parts)


def _as_parts(targets: MemitTargets, gates: Sequence[Sequence[_Gate]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The facts and their gates as what a file keeps."""
    tensors, facts = targets.parts()
    every = [gate for own in gates for gate in own]
    if not every:
        tensors = {}
    else:
        tensors |= {name: torch.stack([getattr(gate, name) for gate in every]) for name in _VECTORS}
    numbers = ("name", "first", "own", "near")
    return tensors, facts | {
        "gates": [[{name: getattr(gate, name) for name in numbers} for gate in own] for own in gates]
    }


def _from_parts(
    path: Any, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> tuple[MemitTargets, tuple[tuple[_Gate, ...], ...]]:
    """What `_as_parts` took apart. Raises FormatError if it does not fit together."""
    kept = dict(facts)
    entries = kept.pop("gates")
    if not entries:
        tensors = dict.fromkeys(("vectors", "initial", *_VECTORS), torch.empty(0))
    targets = MemitTargets.of_parts(path, (dict(tensors), kept))
    try:
        rows = list(zip(*(tensors[name] for name in _VECTORS), strict=True))
        if any(each.ndim != 1 for row in rows for each in row) or any(len(key) != len(unit) for key, unit, _ in rows):
            raise ValueError("keys of several sizes")
        if not all(each.isfinite().all() and each.dtype == torch.float32 for row in rows for each in row):
            raise ValueError("keys that are not finite numbers in float32")
        left = iter(rows)
        gates = tuple(tuple(_gate(entry, next(left)) for entry in own) for own in entries)
        if len(gates) != len(targets.requests) or next(left, None) is not None or not all(gates):
            raise ValueError(f"gates of {len(gates)} facts, and {len(targets.requests)} targets")
    except (KeyError, TypeError, ValueError, StopIteration, RuntimeError) as error:
        raise FormatError(f"{path} holds no whole memory ({error!r}). Begin another one.") from error
    return targets, gates


def _gate(entry: Mapping[str, Any], row: Sequence[Tensor]) -> _Gate:
    """A gate from what a file says of it. Raises TypeError if that is of other types."""
    kinds = {"name": str, "first": bool, "own": float, "near": float}
    if not isinstance(entry, dict) or any(not isinstance(entry[name], kind) for name, kind in kinds.items()):
        raise TypeError(f"a gate {entry!r:.80}")
    key, direction, residual = row
    return _Gate(key=key, direction=direction, residual=residual, **entry)
