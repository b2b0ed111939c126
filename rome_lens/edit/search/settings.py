"""Hyper-parameters of the search for v*, each with its source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from rome_lens.checking import check_least, check_positive, check_seed, check_whole
from rome_lens.edit.presets.table import Method, preset_to_use
from rome_lens.edit.search.contexts import EditedToken, check_contexts, check_lengths, check_token, sample_contexts
from rome_lens.models import Model

Batch = TypeVar("Batch", bound="BatchConfig")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Hyper-parameters of the search for v* (Eq. 4), by default the authors' for GPT-2 XL (kmeng01/rome@0874014).

    Attributes:
        token: token that k* and v* belong to (fact_token): "subject_end", the subject's last one as in the paper, but
            the one after it where the subject's last token is the first of the whole text; always the last one
            ("subject_last"), the first one, the first one after it, or the prompt's last one (compared in figure 5).
        contexts: context templates, "{}" first; None: sampled from the model.
        context_lengths: (tokens, number of contexts) pairs of the contexts to sample.
        seed: seed of that sampling.
        steps: steps of Adam (v_num_grad_steps); the last one only computes the loss.
        learning_rate: learning rate of Adam (v_lr).
        weight_decay: factor of |delta| / |v0|^2 (v_weight_decay).
        clamp_norm_factor: bound on |delta| / |v0|.
        norm_over_contexts: True: |v0| is the mean over contexts. False: the bare prompt's, as in the authors' code,
            which is small for some subjects at the start of a text, so that hardly any delta is allowed.
        kl_factor: factor of the essence term in Eq. 4 (kl_factor).
        early_stop_loss: the search stops below this loss (5e-2 in compute_v).
        steps_on_top: the search also stops once each token of the target was the most probable one, in all contexts,
            for so many steps in a row, as ENCORE's does (Gupta et al. 2025, arXiv 2502.01636: 4 for GPT-2 XL, 3 for
            Llama 2, 2 for Llama 3); None: it does not.
        anchor_norm: what |v*| is brought to (NAS, arXiv 2602.02543): the mean over pilot edits of the unedited model,
            from `anchor_norm`. A v* of more than twice that is not written: v0 is kept. None: v* stays as it is found.
    """

    token: EditedToken = "subject_end"
    contexts: Sequence[str] | None = None
    context_lengths: Sequence[tuple[int, int]] = ((10, 5),)
    seed: int = 0
    steps: int = 20
    learning_rate: float = 0.5
    weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    norm_over_contexts: bool = True
    kl_factor: float = 0.0625
    early_stop_loss: float = 0.05
    steps_on_top: int | None = None
    anchor_norm: float | None = None

    def __post_init__(self) -> None:
        check_token(self.token)
        if self.contexts is not None:
            check_contexts(self.contexts)
        check_lengths("context_lengths", self.context_lengths)
        check_seed(self.seed)
        check_positive(self, "steps", "learning_rate", "clamp_norm_factor")
        check_least(self, weight_decay=0, kl_factor=0)
        check_positive(self, "anchor_norm")
        check_whole(steps_on_top=self.steps_on_top)

    def contexts_for(self, model: Model) -> tuple[str, ...]:
        """The contexts; sampled from the model if none are given."""
        if self.contexts is None:
            return sample_contexts(model, self.context_lengths, seed=self.seed)
        return tuple(self.contexts)


@dataclass(frozen=True, kw_only=True)
class BatchConfig(SearchConfig):
    """Hyper-parameters that MEMIT, EMMET and AlphaEdit share; SearchConfig has the other attributes.

    The defaults are the authors' for GPT-J (kmeng01/memit, hparams/MEMIT): 25 steps, and a bound of 0.75 times the norm
    of the residual state, which these methods search instead of the MLP's output.

    Attributes:
        layers: blocks to edit; None: those of the covariances. The search is for the state after the last one.
        constrain_bare_prompt: as in RomeConfig; at most for as many requests as a quarter of d_mlp, the ones whose bare
            keys differ most from their means first.
    """

    _method: ClassVar[Method]
    layers: Sequence[int] | None = None
    steps: int = 25
    clamp_norm_factor: float = 0.75
    constrain_bare_prompt: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            check_ascending(self.layers)

    @classmethod
    def for_model(cls: type[Batch], model: Model) -> Batch:
        """The numbers known for a model of this family and shape; `find_preset` tells where they come from.

        Raises:
            ValueError: none are known for its family.
        """
        preset = preset_to_use(model, cls._method)
        return cls(layers=preset.layers, **preset.numbers)


def check_ascending(layers: Sequence[int]) -> None:
    """Raises ValueError unless these are distinct, ascending numbers of blocks."""
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
        raise ValueError(f"layers is {list(layers)}, expected distinct, ascending numbers of blocks, counted from 0.")
