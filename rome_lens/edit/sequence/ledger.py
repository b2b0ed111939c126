"""A ledger of facts: what a model is to say, of which facts can be taken back, and the one edit that says all of it.

With the keys K of all facts, what is missing to their values R, and the preserved prompts' keys P, the edit is the D
that makes tr(DT C D) least among those with K D = R and P D = 0 (EMMET's form, closed_forms.py). P also has the
differences of facts' keys with and without contexts, as in rome.py. The edit depends on which facts there are, not on
when they came: values are found on the unedited model, so that a withdrawn fact leaves nothing.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import checked, checked_result
from rome_lens.data.records import EditRequest
from rome_lens.edit.artifact.edit import Edit, as_json, finite_matrix, target_probabilities
from rome_lens.edit.artifact.health import MOST_RELATIVE_NORM, OnUnhealthy
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import covariances_for
from rome_lens.edit.methods.closed_forms import PreservedKeys, emmet_factor, with_context_differences
from rome_lens.edit.methods.preserve import (
    PreservedPrompts,
    Prompts,
    preserve_figures,
    preserved_prompts,
    preserved_texts,
)
from rome_lens.edit.methods.requests import Requests, as_requests
from rome_lens.edit.methods.rome import RomeConfig
from rome_lens.edit.search.key import subject_keys
from rome_lens.edit.search.value import optimise_values, search_figures
from rome_lens.edit.sequence.ledger_checks import check_together
from rome_lens.edit.sequence.ledger_fact import FACTS, LedgerFact, as_parts, from_parts
from rome_lens.errors import EditError, EditWarning, warn
from rome_lens.models import Model, in_float64, mlp_output, model_identity
from rome_lens.storage import Checkpoint, open_checkpoint, plain, read_checkpoint

_KIND = "rome_lens ledger 1"
_SAVED_AT_ONCE = 4  # facts whose search a kill may lose
MOST_OF_THE_RANK = 0.8


@checked_result
@dataclass(frozen=True)
class LedgerRoom:
    """How full a ledger is.

    Attributes:
        rank_used: keys of facts and of preserved prompts, and differences between a fact's keys with and without
            context, each of which takes one dimension.
        width: how many dimensions there are, d_mlp.
        relative_norm: the edit's norm over that of the unedited weight.
    """

    rank_used: int
    width: int
    relative_norm: float


@checked
class EditLedger:
    """Facts that a model is to say, in one layer, added and withdrawn in any order.

    Args:
        model: Unedited; run when facts are added and for the edit, and left unchanged. It has to stay as it is while
            the ledger is used (with the ledger's own edit reverted).
        covariances: Covariances of the keys, by layer; None: the one that ships for the model.
        config: ROME's numbers, of which `consistent` has to be true: a fact has one key. Its layer may be left out if
            there is one covariance.
        out: a folder to keep the ledger in, made if missing; what is there is gone on with, and what others add or
            withdraw there meanwhile is seen. None: kept in memory only.

    Raises:
        CovarianceError: the covariance is of another layer or model.
        EditError: the weights are not finite.
        FormatError: the folder holds a ledger of another model, layer, covariance or config, or other or damaged files.
        ValueError: the layer is not said or does not exist, or the config is not consistent.
    """

    def __init__(
        self,
        model: Model,
        *,
        covariances: Mapping[int, KeyCovariance] | None = None,
        config: RomeConfig | None = None,
        out: str | os.PathLike[str] | None = None,
    ) -> None:
        config = RomeConfig() if config is None else config
        if not config.consistent:
            raise ValueError("RomeConfig.consistent is False, expected True: a ledger answers each fact at one key.")
        covariances = covariances_for(model, covariances)
        layer = next(iter(covariances)) if config.layer is None and len(covariances) == 1 else config.layer
        if layer is None or layer not in covariances:
            raise ValueError(
                f"The ledger's layer is {layer}, expected one of the covariances' {sorted(covariances)}. Choose it: "
                "config=RomeConfig(layer=...)."
            )
        self._shape = finite_matrix(model, layer).shape
        covariances[layer].check(model, layer)
        self.layer: int = layer
        self._model, self._covariance, self._out = model, covariances[layer], out
        self._config = replace(config, layer=layer, contexts=config.contexts_for(model))
        self._made_on = model_identity(model)
        self._identity: dict[str, Any] = self._made_on | self._made_with()
        self._facts: list[LedgerFact] = []
        with self._opened():
            pass

    def _made_with(self) -> dict[str, Any]:
        asked = as_json(self._config)
        return {"layer": self.layer, "covariance": plain(self._covariance.second_moment), "config": plain(asked)}

    @contextmanager
    def _opened(self) -> Iterator[Checkpoint]:
        """The ledger on the disk, for this process alone; its facts are read first."""
        with open_checkpoint(self._out, kind=_KIND, identity=self._identity, facts=FACTS) as kept:
            self._take(kept.found)
            yield kept

    def _reread(self) -> list[LedgerFact]:
        """The facts as the folder has them now, whoever wrote them."""
        if self._out is not None:
            self._take(read_checkpoint(self._out, kind=_KIND, identity=self._identity, facts=FACTS))
        return self._facts

    def _take(self, found: tuple[dict[str, Tensor], dict[str, Any]] | None) -> None:
        if found is not None:
            self._facts = from_parts(self._out, *found, self._shape)

    @property
    def facts(self) -> tuple[EditRequest, ...]:
        """The facts on the ledger, in the order in which they came."""
        return tuple(fact.request for fact in self._reread())

    def add(self, requests: Requests, *, preserve: Prompts | None = None, progress: bool = True) -> None:
        """Puts facts on the ledger. Those that are on it already are left as they are, so that a killed run can go on.

        Args:
            requests: the facts.
            preserve: prompts that must stay as they are for as long as these facts are on the ledger; see `rome`.
            progress: shows a bar.

        Raises:
            EditError: the model is not as it was when the ledger was begun, in any weight; a fact's key is that of
                another fact or of what is preserved; there is no room for so many; or a loss is not finite. What was
                found until then is kept.
            UnavailableError: another run has the ledger open, or the disk is full; what was there is kept.
            ValueError: two targets for one prompt, or a prompt that does not fit.

        Warns:
            EditWarning: the ledger is nearly full.
        """
        self._check_model()
        requests, model, config = as_requests(requests), self._model, self._config
        contexts = config.contexts_for(model)
        with self._opened() as kept:
            there = [fact.request for fact in self._facts]
            missing = [request for request in dict.fromkeys(requests) if request not in there]
            texts = preserved_texts(preserve)
            on_it = [*self._texts(self._facts), *texts]
            check_together(model, self.layer, [*there, *missing], on_it, config.token)
            parts = [missing[i : i + _SAVED_AT_ONCE] for i in range(0, len(missing), _SAVED_AT_ONCE)]
            with tqdm(total=len(missing), desc="ledger", unit="fact", disable=not progress) as bar:
                for part in parts:
                    values = optimise_values(model, self.layer, part, contexts, config, progress=False)
                    facts = list(self._facts)
                    for request, value in zip(part, values, strict=True):
                        keys = subject_keys(model, self.layer, request, contexts, token=config.token).cpu()
                        value = replace(value, vector=value.vector.cpu(), initial=value.initial.cpu())
                        facts.append(LedgerFact(request, keys.mean(0), keys[0], value, tuple(texts)))
                    kept.save(*as_parts(facts))
                    self._facts = facts
                    bar.update(len(part))
        self._warn_if_nearly_full()

    def withdraw(self, request: EditRequest) -> None:
        """Takes a fact off the ledger. What was to be preserved for it alone is no longer preserved.

        Raises:
            ValueError: the fact is not on the ledger.
        """
        with self._opened() as kept:
            left = [fact for fact in self._facts if fact.request != request]
            if len(left) == len(self._facts):
                raise ValueError(
                    f"{request.text!r} -> {request.target!r} is not among the {len(left)} facts on the ledger, or was "
                    "withdrawn before. See ledger.facts."
                )
            kept.save(*as_parts(left))
            self._facts = left

    def edit(self, *, on_unhealthy: OnUnhealthy = "warn") -> Edit:
        """The edit that makes the model say all facts on the ledger, as `rome` gives it for one.

        Raises:
            EditError: the model is not as it was when the ledger was begun; keys depend on each other; or the edit is
                unhealthy and `on_unhealthy` is "raise". No weight is changed.
            ValueError: the ledger is empty.
        """
        self._check_model()
        if not self._reread():
            raise ValueError("The ledger is empty. Add a fact: ledger.add(request).")
        return self._edit(self._facts, on_unhealthy)

    def _edit(self, facts: Sequence[LedgerFact], on_unhealthy: OnUnhealthy) -> Edit:
        facts = sorted(facts, key=lambda fact: fact.request.text)
        preserved = self._preserved(facts)
        kept = self._kept(facts, preserved)
        keys, right = self._keys_and_missing(facts)
        left = emmet_factor(keys, self._covariance, kept).float()
        factors = {self.layer: (left, right)}
        return Edit.of(
            self._model,
            [fact.request for fact in facts],
            factors,
            method="ledger",
            config=as_json(self._config) | preserved.as_json(),
            on_unhealthy=on_unhealthy,
            **search_figures([fact.value for fact in facts]),
            condition_number=self._covariance.condition_number,
            **(self._cost(facts, left, kept) if preserved.places and kept is not None else {}),
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each fact: prompt, subject, target; target_probability in the model with the ledger's edit;
        `residual`, how much of what the fact is to change the edit misses (0 for none); and how many prompts it
        preserves.
        """
        columns = ["prompt", "subject", "target", "target_probability", "residual", "preserved"]
        if not self._reread():
            return pd.DataFrame(columns=columns)
        self._check_model()
        edit = self._edit(self._facts, "ignore")
        with edit.applied(self._model):
            probabilities = target_probabilities(self._model, self.facts)
        update = edit.updates[0]
        keys, missing = self._keys_and_missing(self._facts)
        off = keys @ update.left.to(keys) @ update.right.to(keys) - missing
        residuals = (off.norm(dim=-1) / missing.norm(dim=-1)).tolist()
        rows = [
            (f.request.text, f.request.subject, f.request.target, probability, residual, len(f.preserve))
            for f, probability, residual in zip(self._facts, probabilities.tolist(), residuals, strict=True)
        ]
        return pd.DataFrame(rows, columns=columns)

    def room(self) -> LedgerRoom:
        """How full the ledger is. Raises EditError if the model is not as it was when the ledger was begun."""
        self._reread()
        self._check_model()
        return self._room()

    def _room(self) -> LedgerRoom:
        width = self._shape[0]
        if not self._facts:
            return LedgerRoom(0, width, 0.0)
        kept = self._kept(self._facts, self._preserved(self._facts))
        used = len(self._facts) + (0 if kept is None else len(kept.keys))
        health = self._edit(self._facts, "ignore").health
        return LedgerRoom(used, width, health.relative_update_norm if health else 0.0)

    def _keys_and_missing(
        self, facts: Sequence[LedgerFact]
    ) -> tuple[Float[Tensor, "fact d_mlp"], Float[Tensor, "fact d_model"]]:
        """K, in float64, and what is missing to V at the keys that are to answer V (the bare ones, if constrained)."""
        keys, values = (torch.stack(each) for each in ([f.key for f in facts], [f.value.vector for f in facts]))
        answering = torch.stack([f.bare_key for f in facts]) if self._config.constrain_bare_prompt else keys
        wide = in_float64(keys.to(self._model.cfg.device))
        return wide, (values - mlp_output(self._model, self.layer, answering)).to(wide.device)

    def _texts(self, facts: Sequence[LedgerFact]) -> list[str]:
        return [text for fact in facts for text in fact.preserve]

    def _preserved(self, facts: Sequence[LedgerFact]) -> PreservedPrompts:
        """What the facts must not disturb, together."""
        requests, token = [fact.request for fact in facts], self._config.token
        return preserved_prompts(self._model, sorted(self._texts(facts)), requests, [self.layer], token=token)

    def _cost(
        self, facts: Sequence[LedgerFact], left: Float[Tensor, "d_mlp fact"], kept: PreservedKeys
    ) -> dict[str, Any]:
        keys, right = self._keys_and_missing(facts)
        without = emmet_factor(keys, self._covariance, self._kept(facts, PreservedPrompts({}))).float()
        return preserve_figures((left, right), (without, right), keys, kept)

    def _kept(self, facts: Sequence[LedgerFact], preserved: PreservedPrompts) -> PreservedKeys | None:
        """The keys of what the facts must not disturb, and the differences that make a fact alike in all contexts."""
        kept = preserved.keys(self._model, self.layer)
        if not self._config.constrain_bare_prompt:
            return kept
        keys, bare = (torch.stack(each) for each in ([f.key for f in facts], [f.bare_key for f in facts]))
        return with_context_differences(kept, keys, bare)

    def _check_model(self) -> None:
        """Raises EditError unless every weight is as it was: keys and values are those of the model as it is."""
        if model_identity(self._model) != self._made_on:
            raise EditError(
                f"{self._model.cfg.model_name} is not what it was when the ledger was begun: its weights have changed, "
                f"in layer {self.layer} or another. Revert the model's edits (revert_edits), or begin a ledger for it."
            )

    def _warn_if_nearly_full(self) -> None:
        room = self._room()
        if room.rank_used > MOST_OF_THE_RANK * room.width or room.relative_norm > MOST_RELATIVE_NORM:
            warn(
                f"The ledger is nearly full: {room.rank_used} of {room.width} dimensions of layer {self.layer} are "
                f"used, and the edit is {room.relative_norm:.2f} of the weight's norm (at most {MOST_OF_THE_RANK:.0%} "
                f"and {MOST_RELATIVE_NORM}). Withdraw facts, or preserve less.",
                EditWarning,
            )
