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

The first token. Without BOS, attention makes the keys of all first tokens nearly alike, and later tokens hardly read
what is added there, so the search edits the token after it ("subject_end"). A subject that is one such token gets a
second gate, which reads there too: that token's key, told from its keys after other first tokens. A fact's residual
belongs to one of the two places; where that is the second, another is searched for the first.

Several facts about one subject meet at one token, often before the relation is read. The mean of their residuals is
added: their sum, which grows with their number, tells them less often, and the nearest alone tells one of them.

The keys of a layer do not depend on what is added after it, so a memory does not disturb its own gates.
"""

import math
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
from rome_lens.edit.artifact.edit import Edit, finite_matrix, target_probabilities
from rome_lens.edit.artifact.health import EditHealth, OnUnhealthy, report_problems, target_figures
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import covariances_for
from rome_lens.edit.methods.closed_forms import emmet_factor
from rome_lens.edit.methods.near import kept_bank_keys, same_name
from rome_lens.edit.methods.requests import Requests, as_requests
from rome_lens.edit.search.contexts import in_context
from rome_lens.edit.search.key import subject_activations
from rome_lens.edit.search.settings import BatchConfig, SearchConfig
from rome_lens.edit.search.targets import MemitTargets, Parts, check_requests, memit_targets, search_numbers
from rome_lens.edit.search.value import Value, search_figures
from rome_lens.errors import EditError, EditWarning, warn
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
from rome_lens.storage import check_shapes, digest, foreign, load_tensors, open_checkpoint, plain, save_tensors

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
_NOT_FIRST, _FIRST = "As everybody knows, {}", "{} is"
LEAST_COSINE = 0.5
_NUMBERS, _VECTORS = ("name", "after", "own", "near"), ("key", "direction", "residual")
_COVARIANCE = "covariance."
_FIRST_TOKENS = 256  # of a text, spread over the vocabulary
_SEARCHED_AT_ONCE = 64  # on a GPU
_AT_ONCE = 1024  # rows whose cosines are in memory together
_SCREENED = 3  # of the coordinates, one of so many is looked at first
_ROUNDING = 1e-4


@checked
@dataclass(frozen=True, eq=False)
class _Gate:
    """One spelling of a fact's subject.

    Attributes:
        name: the spelling.
        after: None: it opens at the subject's last token; or the token after it at which it opens, where the subject is
            the first token of a text.
        own: the lowest cosine among its own keys.
        near: the highest among those of subjects in the bank and of first tokens.
        key: float32: the mean of its keys.
        direction: float32: its direction in coordinates of length 1 where C is the identity.
        residual: float32: what it adds.
    """

    name: str
    after: str | None
    own: float
    near: float
    key: Float[Tensor, " d_mlp"] = field(repr=False)
    direction: Float[Tensor, " d_mlp"] = field(repr=False)
    residual: Float[Tensor, " d_model"] = field(repr=False)


_Entry = tuple[EditRequest, Value, tuple[_Gate, ...]]


@dataclass(frozen=True, eq=False)
class _Gates:
    """All gates of a memory: one for each spelling (name, after), with the mean residual of the facts about it.

    `whitening` takes a key to coordinates in which C is the identity; of these the `screened` first are compared first.
    """

    spellings: tuple[tuple[str, str | None], ...]
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
        ValueError: the layer does not exist or has no covariance, or config.token is not "subject_end".
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
        if config.token != "subject_end":
            raise ValueError(f"config.token is {config.token!r}, expected 'subject_end': gates read its keys.")
        if covariance is None:
            covariance = next(iter(covariances_for(model, None).values()))
        layer = covariance.layer if layer is None else layer
        made_for = digest(finite_matrix(model, layer))
        covariance.check(model, layer)
        covariance.whitened(torch.zeros(len(covariance.second_moment)))
        contexts = config.contexts_for(model)
        search = search_numbers(config)
        targets = MemitTargets(layer, contexts, search, (), ())
        self._set(covariance, targets, (), made_for, name_of(model), model)
        if out is not None:
            asked = {"contexts": plain(contexts), "search": plain(search)}
            made_with = {"layer": layer, "covariance": plain(covariance.second_moment), **asked}
            self._out, self._identity = out, model_identity(model) | made_with
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

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The memory on the disk, for this process alone; its facts are read first."""
        with open_checkpoint(self._out, kind=MEMORY, identity=self._identity, facts=_FACTS) as kept:
            if kept.found is not None:
                self._take(*_from_parts(kept.path, *kept.found, len(self._covariance.second_moment)))
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
            names = [dict.fromkeys([each.subject, *aliases.get(each.subject, ())]) for each in missing]
            abouts = [
                [replace(each, subject=name) for name in those] for each, those in zip(missing, names, strict=True)
            ]
            given = None if targets is None else self._given(targets, missing)
            at_once = 1 if torch.device(model.cfg.device).type == "cpu" else _SEARCHED_AT_ONCE
            try:
                with tqdm(total=len(missing), desc="memory", unit="fact", disable=not progress) as bar:
                    for start in range(0, len(missing), at_once):
                        part = missing[start : start + at_once]
                        values = given[start : start + at_once] if given is not None else self._searched(model, part)
                        for request, value, spellings in zip(part, values, abouts[start:], strict=False):
                            gates = [gate for about in spellings for gate in self._gates_of(model, about, value)]
                            self._put([*self._entries(), (request, value, tuple(gates))])
                        if kept.is_due:
                            kept.save(*self._parts())
                        bar.update(len(part))
            finally:
                if len(self) > len(there):
                    kept.save(*self._parts())

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

    def _entries(self) -> list[_Entry]:
        return list(zip(self.facts, self._targets.values, self._gates, strict=True))

    def _put(self, entries: Sequence[_Entry]) -> None:
        requests, values, gates = zip(*entries, strict=True) if entries else ((), (), ())
        self._take(replace(self._targets, requests=requests, values=values), gates)

    def _gates_of(self, model: Model, about: EditRequest, value: Value) -> list[_Gate]:
        """The gates of a request in one spelling of its subject."""
        begins = about.prompt.startswith(PLACE)
        start = about if begins else replace(about, prompt=_FIRST)
        places = [replace(about, prompt=place) for place in (PLACE, *PLACES)]
        asked = [(each, PLACE) for each in (*places, about, start)]
        found = subject_activations(model, key_name(self.layer), self.layer, asked).cpu()
        within, (first, bare, after) = found[1:-2], self._unit(found[[0, -2, -1]])
        text, position, _ = in_context(model, start, PLACE)
        apart = in_context(model, start, PLACE, token="subject_last")[1] == 0
        names, units = self._bank
        near_units = units[torch.tensor([not same_name(about.subject, other) for other in names])]
        if apart:
            first = torch.zeros_like(first)
        direction = normalize(self._unit(within.mean(0)) + first, dim=-1)
        left_out = (within.sum(0) - within) / (len(within) - 1)  # a key is compared with a direction made without it
        own = (normalize(self._unit(left_out) + first, dim=-1) * self._unit(within)).sum(-1).tolist()
        own += [] if apart else [(direction @ first).item()]
        own += [] if apart and begins else [(direction @ bare).item()]
        near = torch.cat([near_units, self._first_units]) @ direction
        residual = there = value.vector - value.initial
        if apart and begins:
            (other,) = self._searched(model, [replace(about, prompt=fill(_NOT_FIRST, about.prompt))])
            residual = other.vector - other.initial
        gates = [_Gate(about.subject, None, min(own), near.max().item(), within.mean(0), direction, residual)]
        if apart:
            token, *following = text.ids[: position + 1]
            near = torch.cat([near_units, self._units_after_first(following, but=token)]) @ after
            label = "".join(token_texts(model, following))
            gates.append(_Gate(about.subject, label, 1 - _ROUNDING, near.max().item(), found[-1], after, there))
        return gates

    def _unit(self, keys: Float[Tensor, "*n d_mlp"]) -> Float[Tensor, "*n d_mlp"]:
        """Keys in coordinates where C is the identity, of length 1."""
        return normalize(self._covariance.whitened(keys), dim=-1).float()

    @cached_property
    def _bank(self) -> tuple[list[str], Float[Tensor, "subject d_mlp"]]:
        """The subjects that ship, and their keys."""
        subjects = load_subjects()
        keys = kept_bank_keys(self._known_model(), self.layer, subjects)
        return [fact.subject for fact in subjects], self._unit(keys)

    @cached_property
    def _first_units(self) -> Float[Tensor, "token d_mlp"]:
        """The keys of first tokens of texts."""
        return self._units_after_first(())

    def _units_after_first(self, following: Sequence[int], but: int | None = None) -> Float[Tensor, "token d_mlp"]:
        """The keys at the last of these tokens, after first tokens of texts other than one."""
        model = self._known_model()
        size = model.cfg.d_vocab
        firsts = torch.linspace(0, size - 1, min(_FIRST_TOKENS, size)).long().tolist()
        tokens = torch.tensor([[first, *following] for first in firsts if first != but])
        found = mlp_keys(model, tokens, torch.ones_like(tokens), [self.layer])[self.layer][:, -1]
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
            ValueError: the fact is not in the memory.
        """
        with self._opened() as kept:
            if request not in self.facts:
                raise ValueError(
                    f"{request.text!r} -> {request.target!r} is not among the {len(self)} facts of the memory, or was "
                    "withdrawn before. See memory.facts."
                )
            entries, before = self._entries(), (self._targets, self._gates)
            self._put([entry for entry in entries if entry[0] != request])
            try:
                kept.save(*self._parts())
            except BaseException:
                self._take(*before)
                raise

    @contextmanager
    def applied(self, model: EditableModel) -> Iterator[EditableModel]:
        """`with memory.applied(model): ...` runs the body on the model with the memory, as it is when the body begins.

        By hooks: no weight is changed. It holds for every run of the model, with a key/value cache too, and for
        models in Hugging Face's classes.

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
        gates = {self._all_gates.keys.device: self._all_gates}

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
        """A row for each spelling of each fact's subject: prompt, target, subject, after (the token at which the gate
        opens where the subject is the first token of a text; None: it opens at the subject's last), own (the lowest
        cosine among its own keys), near (the highest among other subjects'), threshold, target_probability (at the end
        of its search).
        """
        columns = ["prompt", "target", "subject", "after", "own", "near", "threshold", "target_probability"]
        rows = []
        if len(self):
            gates = self._all_gates
            numbers = {spelling: i for i, spelling in enumerate(gates.spellings)}
            for request, value, own in self._entries():
                for gate in own:
                    number = numbers[gate.name, gate.after]
                    near, threshold = gates.near[number].item(), gates.thresholds[number].item()
                    sure = gate.own, near, threshold, math.exp(-value.nll)
                    rows.append((request.text, request.target, gate.name, gate.after, *sure))
        return pd.DataFrame(rows, columns=columns)

    @property
    def health(self) -> EditHealth | None:
        """What the searches say; no weight is changed. None: there are no facts."""
        if not len(self):
            return None
        return EditHealth(update_norm=0.0, relative_update_norm=0.0, **self._figures())

    def _figures(self) -> dict[str, Any]:
        return search_figures(self._targets.values) | {"condition_number": self._covariance.condition_number}

    def keys_and_residuals(self) -> tuple[Float[Tensor, "spelling d_mlp"], Float[Tensor, "spelling d_model"]]:
        """K and R of the closed forms: for each spelling of a subject its mean key, and the mean residual of its facts.

        Raises:
            ValueError: the memory is empty.
        """
        if not len(self):
            raise ValueError("The memory is empty. Add a fact: memory.add(request).")
        gates = self._all_gates
        chosen = torch.tensor([after is None for _, after in gates.spellings])
        return gates.keys[chosen], gates.residuals[chosen]

    def edit(self, *, on_unhealthy: OnUnhealthy = "warn") -> Edit:
        """The same facts in the weights: the least update, in the norm of C, that adds each residual at its key, as a
        ledger computes it. It has a rank for each spelling, and answers other keys in proportion to k C^-1 k_i.

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
        used = {"layer": self.layer, "search": dict(self._targets.search), "contexts": list(self._targets.contexts)}
        return Edit.of(
            model, self.facts, factors, method="memory", config=used, on_unhealthy=on_unhealthy, **self._figures()
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes a safetensors file with the facts, their gates and the covariance that whitens keys.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        tensors, facts = self._parts()
        whitens, known = self._covariance.parts()
        tensors |= {_COVARIANCE + name: tensor for name, tensor in whitens.items()}
        facts |= {"covariance": known, "made_for": self._made_for, "model": self._model_name}
        save_tensors(path, tensors, kind=MEMORY, facts=facts, overwrite=overwrite)

    def _parts(self) -> Parts:
        """The facts and their gates as what a file keeps."""
        tensors, facts = self._targets.parts()
        every = [gate for own in self._gates for gate in own]
        for name in _VECTORS:
            tensors[name] = torch.stack([getattr(gate, name) for gate in every]) if every else torch.empty(0)
        facts["gates"] = [[{name: getattr(gate, name) for name in _NUMBERS} for gate in own] for own in self._gates]
        return tensors, facts

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: Model | None = None) -> "FactMemory":
        """Reads a file that `save` wrote. Without a model (the memory's own, unedited) it can only be applied and
        withdrawn from. Raises CovarianceError if the model is another.
        """
        tensors, facts = load_tensors(path, kind=MEMORY, facts=_FILE)
        whitens = {n.removeprefix(_COVARIANCE): tensors.pop(n) for n in list(tensors) if n.startswith(_COVARIANCE)}
        covariance = KeyCovariance.of_parts(path, whitens, facts.pop("covariance"))
        made_for, name = facts.pop("made_for"), facts.pop("model")
        memory = cls.__new__(cls)
        memory._set(
            covariance, *_from_parts(path, tensors, facts, len(covariance.second_moment)), made_for, name, model
        )
        if model is not None:
            covariance.check(model, memory.layer)
        return memory

    def _known_model(self) -> Model:
        if self._model is None:
            raise ValueError("The memory was loaded without a model. Load it with FactMemory.load(path, model=...).")
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
        d_model = self._targets.values[0].vector.shape if len(self) else values.shape[1:]
        sizes = (len(self._covariance.second_moment), *d_model)
        if tuple(values.shape) != sizes:
            raise EditError(
                f"The memory is of {self._model_name}, with keys and residuals of the sizes {sizes}, but those of "
                f"layer {self.layer} of {name_of(model)} are {tuple(values.shape)}. Apply it to its own model."
            )
        if digest(values) != self._made_for:
            warn(
                f"The memory was made for other weights: layer {self.layer} was {self._made_for[:12]} and is "
                f"{digest(values)[:12]} (SHA-256). Another dtype, folding or edit can be why. Check with explain.",
                EditWarning,
            )


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

    Its health is measured as an Edit's is. Arguments and errors are those of FactMemory and its `add`, and
    `covariances` are of one layer.
    """
    covariances = covariances_for(model, covariances)
    if len(covariances) != 1:
        raise ValueError(f"covariances are of the layers {sorted(covariances)}, expected one layer: a memory has one.")
    memory = FactMemory(model, covariance=next(iter(covariances.values())), config=config)
    memory.add(requests, targets=targets, progress=progress)
    if (health := memory.health) is not None and on_unhealthy != "ignore":
        with memory.applied(model):
            told = target_figures(target_probabilities(model, memory.facts))
        report_problems(replace(health, **told), on_unhealthy, edit=memory)
    return memory


def _joined(covariance: KeyCovariance, targets: MemitTargets, gates: Sequence[Sequence[_Gate]]) -> _Gates:
    """The gates of all facts, each calibrated against the others."""
    by_spelling: dict[tuple[str, str | None], list[tuple[int, _Gate]]] = {}
    for number, those in enumerate(gates):
        for gate in those:
            by_spelling.setdefault((gate.name, gate.after), []).append((number, gate))
    numbers = {spelling: i for i, spelling in enumerate(by_spelling)}
    alike = [[numbers[gate.name, gate.after] for gate in those] for those in gates]
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


def _from_parts(
    path: Any, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], d_mlp: int
) -> tuple[MemitTargets, tuple[tuple[_Gate, ...], ...]]:
    """What `FactMemory._parts` took apart. Raises FormatError if it does not fit together."""
    with foreign(path, "holds no whole memory", "Begin another one."):
        entries = facts["gates"]
        vectors = {name: tensors[name] for name in _VECTORS}
        rest = {name: tensor for name, tensor in tensors.items() if name not in vectors}
        targets = MemitTargets.of_parts(path, (rest, {name: facts[name] for name in facts if name != "gates"}))
        if len(entries) != len(targets.requests) or not all(entries):
            raise ValueError(f"gates of {len(entries)} facts, and {len(targets.requests)} targets")
        count, d_model = sum(map(len, entries)), rest["vectors"].shape[-1]
        shapes = [(count, width) if count else (0,) for width in (d_mlp, d_mlp, d_model)]
        check_shapes(vectors, **dict(zip(_VECTORS, shapes, strict=True)))
        left = zip(*vectors.values(), strict=True)
        gates = tuple(
            tuple(_Gate(**entry, **dict(zip(_VECTORS, next(left), strict=True))) for entry in own) for own in entries
        )
        return targets, gates
