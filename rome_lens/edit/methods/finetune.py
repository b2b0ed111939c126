"""Fine-tuning (FT, FT+L), baselines of the paper: Adam on MLP output matrices (paper section 3.2, appendix E.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from rome_lens.checking import check_least, check_positive, checked
from rome_lens.data.records import Continuation, target_rows
from rome_lens.edit.artifact.edit import Edit, as_json
from rome_lens.edit.artifact.health import OnUnhealthy
from rome_lens.edit.artifact.written import keeping
from rome_lens.edit.methods.requests import Requests, as_requests
from rome_lens.edit.presets.table import preset_to_use
from rome_lens.errors import EditError
from rome_lens.models import Model, find_output_matrix, frozen, requiring_grad
from rome_lens.models.teacher_forcing import run_until


@checked
@dataclass(frozen=True)
class FinetuneConfig:
    """Hyper-parameters of fine-tuning, by default the paper's for GPT-2 XL (appendix E.1; kmeng01/rome, hparams/FT).

    Attributes:
        layers: blocks whose MLP output matrices are trained; the paper trains layer 1 of GPT-2 XL and 21 of GPT-J.
        learning_rate: learning rate of Adam.
        steps: maximum number of steps of Adam (num_steps).
        weight_decay: weight decay of Adam, as an L2 term in the gradient.
        max_change: bound on the change of an entry (L-infinity norm); None: no bound.
        early_stop_loss: training stops below this loss (1e-2 in ft_main.py; the paper says 0.03).
    """

    layers: Sequence[int] = (1,)
    learning_rate: float = 5e-4
    steps: int = 25
    weight_decay: float = 0.0
    max_change: float | None = None
    early_stop_loss: float = 1e-2

    def __post_init__(self) -> None:
        if not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise ValueError(f"layers is {self.layers!r}, expected one or more blocks, counted from 0, each once.")
        check_positive(self, "learning_rate", "steps", "max_change")
        check_least(self, weight_decay=0)

    @classmethod
    def constrained(cls, layers: Sequence[int] = (0,), *, max_change: float = 5e-4) -> "FinetuneConfig":
        """FT+L (Zhu et al. 2020): fine-tuning with bounded changes; the defaults are the paper's for GPT-2 XL.

        For GPT-J the paper uses layer 0 and 5e-5. SmolLM2-135M needs a wider bound: of the first three facts that ship
        with this package, none is rewritten within 5e-4 and all are within 2e-3 (layer 0). Unbounded fine-tuning
        rewrites them with its defaults.
        """
        return cls(layers=layers, max_change=max_change)

    @classmethod
    def for_model(cls, model: Model) -> "FinetuneConfig":
        """The numbers known for a model of this family and shape; `find_preset` tells where they come from.

        Raises:
            ValueError: none are known for its family.
        """
        preset = preset_to_use(model, "finetune")
        return cls(layers=preset.layers, **preset.numbers)


@checked
def finetune(
    model: Model,
    requests: Requests,
    *,
    config: FinetuneConfig | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """Fine-tunes MLP output matrices on the targets, and returns the difference as an Edit (not applied).

    Adam minimises the mean negative log-probability of a target token after its prompt, averaged over requests, by
    teacher forcing. (The authors' ft_main.py predicts all tokens of a target from the prompt's last one, which is the
    same for targets of one token.) With `max_change` the change is clamped after each step. The change is held in
    float32. Blocks before the first trained one are run once.

    Adam scales each entry's gradient on its own, so the difference has full rank: `left` is the difference and `right`
    the identity. The applied edit gives the trained weights bit for bit. Its file holds d_mlp * d_model + d_model^2
    numbers per layer (4.9 MB for SmolLM2-135M), where a rank-one edit takes a few KB.

    Args:
        model: Model to train; its weights are restored bit for bit afterwards, also if this raises.
        requests: What to write, in one batch.

    Returns:
        An Edit with one update per layer. Its health has the norms, `target_probability`, steps, `nll` of the worst
        request after the last step, and, with `max_change`, whether an entry is at the bound.

    Raises:
        EditError: the loss is not finite, or the edit is unhealthy and `on_unhealthy` is "raise".
        ValueError: no requests, an invalid layer, or a prompt that exceeds the model's context.
    """
    config = FinetuneConfig() if config is None else config
    requests = as_requests(requests)
    matrices = {layer: find_output_matrix(model, layer) for layer in config.layers}
    weights = {layer: matrix.values for layer, matrix in matrices.items()}
    parameters = [matrix.parameter for matrix in matrices.values()]
    texts = [Continuation(request.text, request.target, space=request.space) for request in requests]
    batch = run_until(model, target_rows(model, texts), min(weights))
    changes = {layer: torch.zeros_like(weight, dtype=torch.float32) for layer, weight in weights.items()}
    optimizer = torch.optim.Adam(list(changes.values()), lr=config.learning_rate)
    originals = {layer: weight.clone() for layer, weight in weights.items()}
    with (
        frozen(model),
        torch.enable_grad(),
        keeping(matrices.values()),
        requiring_grad(parameters, True),
        tqdm(range(config.steps + 1), desc="fine-tune", unit="step", disable=not progress) as bar,
    ):
        for step in bar:  # the last step only computes the loss
            losses = batch.losses(model, batch.run(model))
            loss = losses.mean()
            if not loss.isfinite():
                raise EditError(
                    f"Fine-tuning failed at step {step}: the loss is {loss.item()}. Check the model's weights (NaN?), "
                    "lower learning_rate, or load the model in float32. No weight was changed."
                )
            bar.set_postfix(loss=f"{loss.item():.3f}")
            if loss < config.early_stop_loss or step == config.steps:
                break
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for (layer, weight), gradient in zip(weights.items(), gradients, strict=True):
                    gradient = matrices[layer].oriented(gradient)
                    changes[layer].grad = gradient.float() + config.weight_decay * weight.float()
                optimizer.step()
                for layer, weight in weights.items():
                    if config.max_change is not None:
                        changes[layer].clamp_(-config.max_change, config.max_change)
                    weight.copy_((originals[layer].float() + changes[layer]).to(weight.dtype))
    worst, bound = losses.max().item(), config.max_change
    clamped = None if bound is None else any(bool((change.abs() >= bound).any()) for change in changes.values())
    factors = {layer: (change.detach(), torch.eye(change.shape[1]).to(change)) for layer, change in changes.items()}
    method = "ft" if config.max_change is None else "ft+l"
    figures = {"nll": worst, "steps": step, "clamped": clamped}
    return Edit.of(
        model, requests, factors, method=method, config=as_json(config), on_unhealthy=on_unhealthy, **figures
    )
