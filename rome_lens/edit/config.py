"""The numbers of the edits, each with its source."""

from collections.abc import Sequence
from dataclasses import dataclass

from rome_lens.checking import check_seed, check_whole, checked
from rome_lens.edit.contexts import EditedToken, check_contexts, check_lengths, check_token, sample_contexts
from rome_lens.models import Model

_WEIGHT_A_NEURON = 15_000 / 16_384  # of MEMIT's authors for GPT-J, by its d_mlp


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The numbers of the search for v* (Eq. 4): those of the authors' GPT-2 XL runs (kmeng01/rome@0874014, hparams).

    Attributes:
        token: where the fact is looked up, and so which token k* and v* belong to (fact_token): the subject's last one
            as in the paper, its first one, the first one after it, or the prompt's last one (compared in figure 5).
        contexts: context templates, "{}" first; None: sampled from the model.
        context_lengths: (tokens, how many) of the contexts to sample.
        seed: of that sampling.
        steps: of Adam (v_num_grad_steps); the last one only reads the loss.
        learning_rate: of Adam (v_lr).
        weight_decay: factor of |delta| / |v0|^2 (v_weight_decay).
        clamp_norm_factor: bound of |delta| / |v0|.
        kl_factor: of the essence term in Eq. 4.
        early_stop_loss: the search stops below this loss (5e-2 in compute_v).
    """

    token: EditedToken = "subject_last"
    contexts: Sequence[str] | None = None
    context_lengths: Sequence[tuple[int, int]] = ((10, 5),)
    seed: int = 0
    steps: int = 20
    learning_rate: float = 0.5
    weight_decay: float = 0.5
    clamp_norm_factor: float = 4.0
    kl_factor: float = 0.0625
    early_stop_loss: float = 0.05

    def __post_init__(self) -> None:
        check_token(self.token)
        if self.contexts is not None:
            check_contexts(self.contexts)
        check_lengths("context_lengths", self.context_lengths)
        check_seed(self.seed)
        _check_positive(self, "steps", "learning_rate", "clamp_norm_factor")
        for name in ("weight_decay", "kl_factor"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or a number above.")

    def contexts_for(self, model: Model) -> tuple[str, ...]:
        """The contexts, sampled from the model if they are not given."""
        if self.contexts is None:
            return sample_contexts(model, self.context_lengths, seed=self.seed)
        return tuple(self.contexts)


@checked
@dataclass(frozen=True, kw_only=True)
class RomeConfig(SearchConfig):
    """The numbers of ROME. The other attributes are those of SearchConfig.

    Five contexts, as in the authors' later code (kmeng01/memit), instead of twenty: k* is their mean, in which the bare
    prompt then weighs enough to be changed too when its key is unlike the others, as keys of a text's first tokens are.

    Attributes:
        layer: the block to edit; None: the layer of the covariance.
        consistent: one k*, the mean over the contexts, on both sides of Eq. 2 (r-ROME, Gupta et al. 2024, arXiv
            2403.07175). False: the mean key on the left and the bare prompt's key on the right, as the authors'
            released code has it; its edits can blow up when the two differ.
    """

    layer: int | None = None
    consistent: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(least=0, layer=self.layer)

    @classmethod
    def reference(cls, layer: int | None = None, *, contexts: Sequence[str] | None = None) -> "RomeConfig":
        """Step for step what the authors' released code does (kmeng01/rome@0874014, rome/)."""
        return cls(layer=layer, contexts=contexts, context_lengths=((5, 10), (10, 10)), consistent=False)


@dataclass(frozen=True, kw_only=True)
class BatchConfig(SearchConfig):
    """What MEMIT, EMMET and AlphaEdit share. The other attributes are those of SearchConfig.

    The search is that of the authors' GPT-J runs (kmeng01/memit, hparams/MEMIT): 25 steps, and a bound of 0.75 times
    the norm of the residual state, which is searched instead of the MLP's output.

    Attributes:
        layers: the blocks to edit; None: those of the covariances. The last one's state is what is searched.
    """

    layers: Sequence[int] | None = None
    steps: int = 25
    clamp_norm_factor: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            check_ascending(self.layers)


@checked
@dataclass(frozen=True, kw_only=True)
class MemitConfig(BatchConfig):
    """The numbers of MEMIT. The other attributes are those of BatchConfig and SearchConfig.

    Attributes:
        covariance_weight: lambda, how much C weighs against one request (mom2_update_weight: 15,000 for GPT-J and
            Llama 3, 20,000 for GPT-2 XL). A key is answered to the share g / (lambda + g) with g = k C^-1 k, whose mean
            over the keys of C is d_mlp. None: 15,000 for each 16,384 of d_mlp, GPT-J's, so that such a key is answered
            to the same share in a model of any width.
    """

    covariance_weight: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.covariance_weight is not None:
            _check_positive(self, "covariance_weight")

    def weight(self, d_mlp: int) -> float:
        """The weight that was given, or the one for this width."""
        return _WEIGHT_A_NEURON * d_mlp if self.covariance_weight is None else self.covariance_weight


@checked
@dataclass(frozen=True, kw_only=True)
class EmmetConfig(BatchConfig):
    """The numbers of EMMET: those of BatchConfig and SearchConfig, no other, since its constraints hold exactly.

    The authors' code (scalable-model-editing/unified-model-editing) adds 0.1 I to K^T C^-1 K of a batch, with C scaled
    by 10,000. That is no longer an equality: it is MEMIT with `covariance_weight=1000`.
    """


@checked
@dataclass(frozen=True, kw_only=True)
class AlphaEditConfig(BatchConfig):
    """The numbers of AlphaEdit (jianghoucheng/AlphaEdit, hparams). The other attributes are those of BatchConfig.

    Attributes:
        null_space_threshold: directions in which C's eigenvalue, the mean square of keys, is below it may be written
            to (nullspace_threshold: 2e-2 for GPT-J and Llama 3 8B). In the unit of squared keys, so that it depends
            on the model.
        ridge: of the update's own norm, also in that unit (L2: 10 for both).
    """

    null_space_threshold: float = 2e-2
    ridge: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "null_space_threshold", "ridge")


def check_ascending(layers: Sequence[int]) -> None:
    """Raises ValueError unless these are the numbers of blocks, each once and ascending."""
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
        raise ValueError(f"layers is {list(layers)}, expected one block or more, each once and ascending, from 0 on.")


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} is {getattr(config, name)}, expected a number above 0.")
