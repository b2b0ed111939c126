"""AnyEdit: long answers, written window by window (Jiang et al. 2025)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from rome_lens.checking import check_least, check_positive, check_whole, checked
from rome_lens.edit.artifact.edit import Edit, as_json
from rome_lens.edit.artifact.health import OnUnhealthy
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import covariances_for
from rome_lens.edit.methods.batch import Measured, checked_layers, spread_over_layers
from rome_lens.edit.methods.closed_forms import memit_factor
from rome_lens.edit.methods.requests import Requests, as_requests
from rome_lens.edit.search.key import prefix_activations
from rome_lens.edit.search.settings import SearchConfig, check_ascending
from rome_lens.edit.search.targets import check_requests
from rome_lens.edit.search.value import search_figures
from rome_lens.edit.search.windows import AnyEditTargets, answer_rows, window_values
from rome_lens.models import Model, check_layer, key_name, state_name


@checked
@dataclass(frozen=True, kw_only=True)
class AnyEditConfig:
    """Hyper-parameters of AnyEdit, by default those of the released code (jianghoucheng/AnyEdit, hparams/MEMIT_ARE for
    Llama 3 8B) but for `window`, `steps`, `early_stop_loss` and `covariance_weight`.

    Attributes:
        layers: blocks to edit; None: those of the covariances. The search is for states after the last one.
        window: tokens of the answer that one vector has to give (window_size: 40 for Llama 3 8B, 50 for Qwen2.5 7B).
            With one, in a late layer, what is written holds after a paraphrase, but comes at other questions too; with
            ten, in a middle layer, it is the other way round: docs/long_answers.md.
        steps: the most steps of Adam for a window; the last one only computes the loss (v_num_grad_steps: 25, after
            which SmolLM2-135M still misses tokens in some windows).
        learning_rate: learning rate of Adam.
        weight_decay: factor of |delta| / |h|^2.
        clamp_norm_factor: bound on |delta| / |h|, for the residual state h.
        early_stop_loss: a window's search stops below this loss (0.01 as released). Below log(2) / window, each token
            has more than half of the probability, so that none is missed in greedy writing; the rest is a reserve for
            prompts in other words, whose keys get only a part of each state.
        covariance_weight: lambda, the weight of C against one key (mom2_update_weight: 15,000, with which a state gets
            about half of the way; see MemitConfig). Small, so that the states that were sought are reached.
    """

    layers: Sequence[int] | None = None
    window: int = 1
    steps: int = 100
    learning_rate: float = 0.5
    weight_decay: float = 1e-3
    clamp_norm_factor: float = 4.0
    early_stop_loss: float = 0.005
    covariance_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.layers is not None:
            check_ascending(self.layers)
        check_whole(window=self.window, steps=self.steps)
        check_positive(self, "learning_rate", "clamp_norm_factor", "covariance_weight")
        check_least(self, weight_decay=0)

    @property
    def search(self) -> SearchConfig:
        """The numbers of the search for one window's vector: there are no contexts, and no essence term."""
        shared = ("steps", "learning_rate", "weight_decay", "clamp_norm_factor", "early_stop_loss")
        return SearchConfig(**{name: getattr(self, name) for name in shared}, kl_factor=0.0)


@checked
def anyedit(
    model: Model,
    requests: Requests,
    *,
    covariances: Mapping[int, KeyCovariance] | None = None,
    config: AnyEditConfig | None = None,
    targets: AnyEditTargets | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """AnyEdit (Jiang et al. 2025, arXiv 2502.05628), in its autoregressive form on MEMIT: writes answers of any length.

    A single vector cannot make a model say a passage. So the answer is cut into windows of tokens, and for each the
    residual state is sought, at the position that predicts the window's first token, with which the model predicts the
    window; the states of earlier windows are kept in place meanwhile. All states are then written at once, as in
    `memit`, by the least squares of Eq. 14 there, in which the keys of all other positions of prompts and answers count
    as keys whose answers should stay.

    The target of a request is the whole answer, its subject plays no part. The model goes on after the answer unless
    the target ends in the tokenizer's end token (`model.tokenizer.eos_token`).

    Args:
        model: Model to run. Updates are applied meanwhile; afterwards its weights are bit for bit what they were.
        requests: What to write: one EditRequest or several, each with a prompt of its own.
        covariances: As in `memit`.
        config: Hyper-parameters; None: `AnyEditConfig()`, which edits the layers of the covariances.
        targets: States of the windows, from `anyedit_targets`, of these requests and perhaps others; None: they are
            searched, which is most of the work.

    Returns:
        An Edit with one update per layer, whose rank is the number of windows, and its health, in which each figure is
        the worst among windows and layers.

    Raises:
        CovarianceError, EditError, ValueError: as `memit`; and an answer that does not fit into the model's context
            with its prompt.
    """
    config = AnyEditConfig() if config is None else config
    requests, covariances = as_requests(requests), covariances_for(model, covariances)
    check_requests(requests)
    layers = checked_layers(model, config.layers, covariances)
    rows = answer_rows(model, requests)
    if targets is None:
        targets = anyedit_targets(model, requests, layer=layers[-1], config=config, progress=progress)
    found = targets.of(model, requests, layers[-1], config.window, config.search)
    measure = partial(_measure, model, [ids for ids, _ in rows], list(found), layers[-1])
    wanted = torch.stack([value.vector for value in found.values()])
    form = partial(memit_factor, weight=config.covariance_weight)
    factors, _, _ = spread_over_layers(
        model, requests, wanted, layers, covariances, form, measure, method="anyedit", progress=progress
    )
    return Edit.of(
        model,
        requests,
        factors,
        method="anyedit",
        config=as_json(replace(config, layers=layers)),
        on_unhealthy=on_unhealthy,
        **search_figures(list(found.values())),
        condition_number=max(covariances[layer].condition_number for layer in layers),
    )


@checked
def anyedit_targets(
    model: Model,
    requests: Requests,
    *,
    layer: int,
    config: AnyEditConfig | None = None,
    progress: bool = True,
) -> AnyEditTargets:
    """Searches, for each window of each answer, the residual state with which the model predicts the window.

    The windows of several answers are searched together, which is faster than one answer at a time, and each gets what
    it gets alone: a step reads the whole model for a window's few tokens. `anyedit` then writes any of them.

    Args:
        model: Model to run; its weights and `requires_grad` flags are left unchanged.
        requests: What to write: one EditRequest or several, each with a prompt of its own.
        layer: Block after which the states are replaced: the last one to be edited.

    Raises:
        EditError: a loss is not finite.
        ValueError: no or contradicting requests, no such layer, or an answer that does not fit into the model's context
            with its prompt.
    """
    config = AnyEditConfig() if config is None else config
    requests = as_requests(requests)
    check_requests(requests)
    check_layer(model, layer)
    return window_values(model, layer, requests, config.search, config.window, progress=progress)


def _measure(
    model: Model, rows: Sequence[tuple[int, ...]], written: Sequence[tuple[int, ...]], last: int, layer: int
) -> Measured:
    """The keys and states where something is written, and the keys of all other positions."""
    keys = prefix_activations(model, key_name(layer), layer, rows)
    states = prefix_activations(model, state_name("resid", last), last, rows)
    chosen = set(written)
    others = torch.stack([key for place, key in keys.items() if place not in chosen])
    return Measured(
        torch.stack([keys[place] for place in written])[:, None],
        torch.stack([states[place] for place in written]).float().to(model.cfg.device),
        earlier=others.T @ others,
    )
