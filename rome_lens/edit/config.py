"""The numbers of a ROME edit, each with its source."""

from collections.abc import Sequence
from dataclasses import dataclass

from rome_lens.edit.contexts import check_contexts


@dataclass(frozen=True)
class RomeConfig:
    """The numbers of an edit: those of the authors' GPT-2 XL runs (kmeng01/rome@0874014, hparams), but for contexts.

    Five contexts, as in the authors' later code (kmeng01/memit), instead of twenty: k* is their mean, in which the bare
    prompt then weighs enough to be changed too when its key is unlike the others, as keys of a text's first tokens are.

    Attributes:
        layer: the block to edit; None: the layer of the covariance.
        consistent: one k*, the mean over the contexts, on both sides of Eq. 2 (r-ROME, Gupta et al. 2024, arXiv
            2403.07175). False: the mean key on the left and the bare prompt's key on the right, as the authors'
            released code has it; its edits can blow up when the two differ.
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

    layer: int | None = None
    consistent: bool = True
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
        if self.contexts is not None:
            check_contexts(self.contexts)
        for name in ("steps", "learning_rate", "clamp_norm_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number above 0.")

    @classmethod
    def reference(cls, layer: int | None = None, *, contexts: Sequence[str] | None = None) -> "RomeConfig":
        """Step for step what the authors' released code does (kmeng01/rome@0874014, rome/)."""
        return cls(layer=layer, contexts=contexts, context_lengths=((5, 10), (10, 10)), consistent=False)
