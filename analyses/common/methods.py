"""The editing methods that analyses compare, by name."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import rome_lens as rl
from rome_lens.edit.methods.requests import Requests, as_requests
from rome_lens.evaluate.measuring import Method
from rome_lens.models import Model

from .options import add_covariance_arguments, kept_covariances, rome_covariance

PRESETS: dict[str, Callable[[], rl.RomeConfig]] = {"rome": rl.RomeConfig, "rome-reference": rl.RomeConfig.reference}
FINETUNING = {"ft": rl.edit.FinetuneConfig(), "ft+l": rl.edit.FinetuneConfig.constrained(max_change=2e-3)}  # see there
BATCH: dict[str, tuple[Callable[..., rl.Edit], Callable[..., Any]]] = {
    "memit": (rl.memit, rl.MemitConfig),
    "emmet": (rl.edit.emmet, rl.edit.EmmetConfig),
    "alphaedit": (rl.edit.alphaedit, rl.edit.AlphaEditConfig),
}
BATCH_LAYERS = [2, 3, 4, 5, 6]  # of SmolLM2-135M
QUIET: dict[str, Any] = {"on_unhealthy": "ignore", "progress": False}
Config = TypeVar("Config", rl.RomeConfig, rl.MemitConfig, rl.edit.EmmetConfig, rl.edit.AlphaEditConfig)
CHOICES = (*PRESETS, *FINETUNING, "kn", "mend", *BATCH)


def add_method_arguments(
    arguments: argparse.ArgumentParser, default: Sequence[str] = ("rome",), choices: Sequence[str] = CHOICES
) -> None:
    """Which methods an analysis compares, and what they need."""
    arguments.add_argument("--methods", nargs="+", choices=choices, default=list(default))
    arguments.add_argument("--mend-editor", type=Path, help="what `rome-lens train_mend` saved; for mend")
    arguments.add_argument("--layers", type=int, nargs="+", default=BATCH_LAYERS, help=f"of {', '.join(BATCH)}")
    add_covariance_arguments(arguments)


def add_search_arguments(arguments: argparse.ArgumentParser) -> None:
    """How long the search for a value is."""
    arguments.add_argument("--contexts", type=int, help="sampled contexts of the search; the preset's if absent")
    arguments.add_argument("--steps", type=int, help="of the search; the preset's if absent")


def shortened(model: Model, options: argparse.Namespace, config: Config) -> Config:
    """A method's settings, with as many sampled contexts and steps of the search as were asked for.

    The contexts are sampled once for a model.
    """
    asked = ((10, options.contexts),) if options.contexts else ()
    lengths = config.context_lengths if options.contexts is None else asked
    contexts = _sampled(model, tuple(lengths), seed=config.seed)
    return replace(config, contexts=contexts, steps=config.steps if options.steps is None else options.steps)


_sampled = cache(rl.edit.sample_contexts)


def add_closed_form_arguments(arguments: argparse.ArgumentParser) -> None:
    """The numbers of MEMIT's and AlphaEdit's closed forms."""
    arguments.add_argument(
        "--covariance-weight",
        type=float,
        help="of MEMIT (15,000 of GPT-J's d_mlp, scaled to the model's, if absent) and AnyEdit (1 if absent)",
    )
    arguments.add_argument("--null-space-threshold", type=float, default=rl.edit.AlphaEditConfig.null_space_threshold)
    arguments.add_argument("--ridge", type=float, default=rl.edit.AlphaEditConfig.ridge, help="of AlphaEdit")


def batch_config(name: str, options: argparse.Namespace) -> Any:
    """The configuration of one of BATCH, with the layers and the numbers of the options."""
    numbers = {
        "memit": {"covariance_weight": options.covariance_weight},
        "emmet": {},
        "alphaedit": {"null_space_threshold": options.null_space_threshold, "ridge": options.ridge},
    }
    return BATCH[name][1](layers=options.layers, **numbers[name])


def chosen_methods(model: Model, options: argparse.Namespace) -> dict[str, Method]:
    """The methods that the options of `add_method_arguments` name."""
    methods = {name: _method(name, model, options) for name in options.methods if name not in BATCH}
    if not set(options.methods) <= set(methods):
        single = OneAtATime(kept_covariances(model, options.layers, options))
        methods |= {name: partial(single, name) for name in options.methods if name in BATCH}
    return {name: methods[name] for name in options.methods}


def _method(name: str, model: Model, options: argparse.Namespace) -> Method:
    if name in FINETUNING:
        return partial(rl.edit.finetune, config=FINETUNING[name], **QUIET)
    if name == "kn":
        return partial(rl.edit.kn, **QUIET)
    if name == "mend":
        if options.mend_editor is None:
            raise SystemExit("mend needs a trained editor. Train one (`rome-lens train_mend`) and give --mend-editor.")
        return partial(
            rl.edit.mend,
            editor=rl.edit.MendEditor.load(options.mend_editor, device=model.cfg.device),
            on_unhealthy="ignore",
        )
    config = PRESETS[name]()  # its contexts are sampled once, before the first edit
    config = replace(config, contexts=rl.edit.sample_contexts(model, config.context_lengths, seed=config.seed))
    return partial(rl.rome, covariance=rome_covariance(model, options), config=config, **QUIET)


@dataclass
class OneAtATime:
    """The methods for batches, with what is asked for. What they share is searched for once for the same requests.

    `numbers` are those of their configurations.
    """

    covariances: Mapping[int, rl.KeyCovariance]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    last: dict[tuple[rl.EditRequest, ...], rl.edit.MemitTargets] = field(default_factory=dict, compare=False)

    def __call__(self, name: str, model: Model, request: Requests) -> rl.Edit:
        asked = tuple(as_requests(request))
        edit, config_of = BATCH[name]
        config = config_of(layers=sorted(self.covariances), **self.numbers)
        if asked not in self.last:
            found = rl.edit.memit_targets(model, asked, layer=max(self.covariances), config=config, progress=False)
            self.last = {asked: found}
        return edit(model, asked, config=config, covariances=self.covariances, targets=self.last[asked], **QUIET)
