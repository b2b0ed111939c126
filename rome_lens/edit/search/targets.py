"""MEMIT's targets z: the residual state with which the model predicts each target (arXiv 2210.07229, Eq. 16).

The search for them is most of the work of a batch edit; MEMIT, EMMET and AlphaEdit can share the result.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import check_whole, checked
from rome_lens.data.records import PLACE, EditRequest
from rome_lens.edit.search.contexts import EditedToken
from rome_lens.edit.search.key import subject_activations
from rome_lens.edit.search.settings import BatchConfig, SearchConfig
from rome_lens.edit.search.value import Value, optimise_values
from rome_lens.errors import EditError
from rome_lens.models import Model, check_layer, model_identity, state_name
from rome_lens.storage import check_shapes, foreign, load_tensors, open_checkpoint, plain, save_tensors

_KIND = "rome_lens memit targets 2"
Parts = tuple[dict[str, Tensor], dict[str, Any]]
_FACTS = {"layer": int, "contexts": list, "search": dict, "ends": list, "requests": list}
_SEARCH = "rome_lens search of memit targets 1"
_REQUESTS_AT_ONCE, _ON_A_CPU = 64, 4  # between two checkpoints; a CPU runs them one by one
_MOST_DIFFERENCE = 0.02


@checked
@dataclass(frozen=True, eq=False)
class MemitTargets:
    """The targets z of several requests, and how they were found.

    Attributes:
        layer: block after which they replace the residual state: the last one to be edited.
        contexts: context templates of the search.
        search: its hyper-parameters, as in SearchConfig.
        requests: the requests.
        values: a Value for each request.
    """

    layer: int
    contexts: tuple[str, ...]
    search: Mapping[str, Any]
    requests: tuple[EditRequest, ...]
    values: tuple[Value, ...] = field(repr=False)

    def check_model(self, model: Model) -> None:
        """Raises EditError unless the model's states are those from which the search started."""
        if not self.requests:
            return
        states = subject_states(model, self.layer, self.requests, token=self.search["token"])
        check_started(model, self.layer, states, self.values)

    def check_use(self, requests: Sequence[EditRequest], layer: int, config: SearchConfig) -> None:
        """Raises ValueError unless these targets fit an edit with such requests, last layer and config."""
        wrong = []
        if self.requests != tuple(requests):
            wrong.append(f"they are for {len(self.requests)} other requests, or in another order")
        if self.layer != layer:
            wrong.append(f"they belong after layer {self.layer}, but the last edited layer is {layer}")
        if config.contexts is not None and tuple(config.contexts) != self.contexts:
            wrong.append("the contexts are others")
        refuse_misfits(wrong, self.search, config, made_by="memit_targets")

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes a safetensors file.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        tensors, facts = self.parts()
        save_tensors(path, tensors, kind=_KIND, facts=facts, overwrite=overwrite)

    def parts(self) -> Parts:
        """The targets as tensors and plain values, for a file."""
        empty = torch.empty(0)
        tensors = {
            "vectors": torch.stack([value.vector for value in self.values]) if self.values else empty,
            "initial": torch.stack([value.initial for value in self.values]) if self.values else empty,
        }
        ends = [{name: getattr(value, name) for name in _DIAGNOSTICS} for value in self.values]
        facts = {"layer": self.layer, "contexts": self.contexts, "search": dict(self.search), "ends": ends}
        facts["requests"] = [asdict(request) for request in self.requests]
        return tensors, facts

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "MemitTargets":
        """Reads a file that `save` wrote."""
        return cls.of_parts(path, load_tensors(path, kind=_KIND, facts=_FACTS))

    @classmethod
    def of_parts(cls, path: str | os.PathLike[str] | None, parts: Parts) -> "MemitTargets":
        """What `parts` took apart. Raises FormatError, which names `path`, if it does not fit together."""
        tensors, facts = parts
        with foreign(path or "", "holds no whole targets", "Find them again."):
            count, width = len(facts["requests"]), tensors["vectors"].shape[-1]
            shape = (count, width) if count else (0,)
            check_shapes(tensors, vectors=shape, initial=shape)
            check_whole(least=0, layer=facts["layer"])
            requests = tuple(EditRequest(**request) for request in facts["requests"])
            values = tuple(
                Value(vector, initial, **end)
                for vector, initial, end in zip(tensors["vectors"], tensors["initial"], facts["ends"], strict=True)
            )
            contexts, names = tuple(facts["contexts"]), search_numbers(SearchConfig())
            search = {name: facts["search"][name] for name in names}
            search_numbers(SearchConfig(contexts=contexts, **search))
            return cls(facts["layer"], contexts, search, requests, values)


_DIAGNOSTICS = tuple(f.name for f in fields(Value) if f.name not in ("vector", "initial"))


@checked
def memit_targets(
    model: Model,
    requests: Sequence[EditRequest],
    *,
    layer: int,
    config: SearchConfig | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> MemitTargets:
    """Searches, separately for each request, the residual state at the subject's last token with which the model
    predicts the target (Eq. 16).

    Args:
        model: Model to run; its weights and `requires_grad` flags are left unchanged.
        requests: What to write.
        layer: Block after which the state is replaced: the last one to be edited.
        config: Hyper-parameters of the search; None: those of BatchConfig.
        out: Folder for the results, saved after every few requests. A later call may have more requests.

    Returns:
        The targets, in the order of `requests`, on the CPU.

    Raises:
        EditError: a loss is not finite.
        ValueError: no or contradicting requests, or no such layer.
    """
    config = BatchConfig() if config is None else config
    check_requests(requests)
    check_layer(model, layer)
    contexts = config.contexts_for(model)
    found = MemitTargets(layer, contexts, search_numbers(config), (), ())
    settings = {"layer": layer, "contexts": plain(contexts), "search": plain(search_numbers(config))}
    identity = model_identity(model) | settings if out is not None else {}
    with open_checkpoint(out, kind=_SEARCH, identity=identity, facts=_FACTS) as kept:
        if kept.found is not None:
            found = MemitTargets.of_parts(kept.path, kept.found)
        missing = [request for request in requests if request not in found.requests]
        at_once = _ON_A_CPU if torch.device(model.cfg.device).type == "cpu" else _REQUESTS_AT_ONCE
        parts = [missing[i : i + at_once] for i in range(0, len(missing), at_once)]
        with tqdm(total=len(missing), desc=f"targets, layer {layer}", unit="request", disable=not progress) as bar:
            for part in parts:
                values = optimise_values(model, layer, part, contexts, config, at="resid", progress=False)
                found = replace(found, requests=(*found.requests, *part), values=(*found.values, *_on_cpu(values)))
                kept.save(*found.parts())
                bar.update(len(part))
    by_request = dict(zip(found.requests, found.values, strict=True))
    return replace(found, requests=tuple(requests), values=tuple(by_request[request] for request in requests))


def subject_states(
    model: Model, layer: int, requests: Sequence[EditRequest], *, token: EditedToken = "subject_end"
) -> Float[Tensor, "request d_model"]:
    """The residual stream after a block, at the edited token of each bare prompt."""
    prompts = [(request, PLACE) for request in requests]
    return subject_activations(model, state_name("resid", layer), layer, prompts, token=token)


def refuse_misfits(wrong: Sequence[str], search: Mapping[str, Any], config: SearchConfig, *, made_by: str) -> None:
    """Raises ValueError if something is wrong with targets, or the numbers of their search are not the config's."""
    numbers = search_numbers(config)
    differing = [f"{name}={value}" for name, value in search.items() if numbers[name] != value]
    if differing:
        wrong = [*wrong, f"they were searched with {', '.join(differing)}"]
    if wrong:
        raise ValueError(f"These targets do not fit: {'; '.join(wrong)}. Find them with {made_by} once more.")


def check_started(model: Model, layer: int, states: Float[Tensor, "value d_model"], values: Sequence[Value]) -> None:
    """Raises EditError unless the model's states after a block are those from which a search started."""
    initial = torch.stack([value.initial for value in values]).to(states)
    difference = ((states - initial).norm(dim=-1) / initial.norm(dim=-1)).max().item()
    if not difference < _MOST_DIFFERENCE:
        raise EditError(
            f"The targets were found on another model, or on other weights: the states of {model.cfg.model_name} "
            f"after layer {layer} differ from those then by {difference:.1%}. Find them again on this model, or revert "
            "its edit. No weight was changed."
        )


def check_requests(requests: Sequence[EditRequest]) -> None:
    """Raises ValueError if there are no requests, or two have the same prompt and subject."""
    if not requests:
        raise ValueError("requests is empty, expected one EditRequest or more.")
    wanted: dict[str, str] = {}
    for request in requests:
        if request.text in wanted:
            both = f"{wanted[request.text]!r} and {request.target!r}"
            raise ValueError(f"Two requests are about {request.text!r}: for {both}. Keep one.")
        wanted[request.text] = request.target


def search_numbers(config: SearchConfig) -> dict[str, Any]:
    """The hyper-parameters of a search, without those of its contexts."""
    return {f.name: getattr(config, f.name) for f in fields(SearchConfig) if f.name not in _ABOUT_CONTEXTS}


_ABOUT_CONTEXTS = ("contexts", "context_lengths", "seed")


def _on_cpu(values: Sequence[Value]) -> list[Value]:
    return [replace(value, vector=value.vector.cpu(), initial=value.initial.cpu()) for value in values]
