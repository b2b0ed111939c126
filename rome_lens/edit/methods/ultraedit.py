"""UltraEdit: many requests in one gradient, without any search (Gu et al. 2025, arXiv 2505.14679)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.checking import check_positive, check_whole, checked
from rome_lens.data.records import Continuation, EditRequest, target_rows
from rome_lens.edit.artifact.edit import Edit, as_json, finite_matrix
from rome_lens.edit.artifact.health import OnUnhealthy
from rome_lens.edit.artifact.update import least_rank
from rome_lens.edit.methods.batch import EditMemory
from rome_lens.edit.methods.requests import Requests, as_requests
from rome_lens.edit.presets.table import preset_to_use
from rome_lens.edit.search.gradients import inputs_and_gradients
from rome_lens.edit.search.settings import check_ascending
from rome_lens.edit.search.targets import check_requests
from rome_lens.errors import EditError
from rome_lens.models import MlpMatrix, Model, in_float64, logits
from rome_lens.models.teacher_forcing import run_until, target_log_probabilities

_EPSILON = torch.finfo(torch.float32).eps
_Place = tuple[int, MlpMatrix]
_Rows = tuple[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]]


@checked
@dataclass(frozen=True, kw_only=True)
class UltraEditConfig:
    """The numbers of UltraEdit.

    Attributes:
        layers: the blocks to edit, ascending, by the matrix of their MLPs that is edited (the authors' differ by model:
            see `for_model`), such as {"gate": [11, 12], "in": [18]}; None: the output matrices of five blocks of the
            last 40 % of the model, evenly spaced.
        learning_rate: of the one step. The authors have 1e-6 for models of 7 billion parameters; see docs/many_edits.md
            for what suits a small one.
        requests_per_pass: whose mean loss is one gradient (batch_size: 10): a gradient's size, and so what the running
            statistics are of, depends on it.
    """

    layers: Mapping[MlpMatrix, Sequence[int]] | None = None
    learning_rate: float = 1e-3
    requests_per_pass: int = 10

    def __post_init__(self) -> None:
        if self.layers is not None:
            if not self.layers:
                raise ValueError("layers is {}, expected blocks of at least one matrix: in, gate or out.")
            for blocks in self.layers.values():
                check_ascending(blocks)
        check_positive(self, "learning_rate")
        check_whole(requests_per_pass=self.requests_per_pass)

    @classmethod
    def for_model(cls, model: Model) -> "UltraEditConfig":
        """The numbers known for a model of this family and shape; `find_preset` tells where they come from.

        Raises:
            ValueError: none are known for its family.
        """
        preset = preset_to_use(model, "ultraedit")
        return cls(layers=preset.matrices, **preset.numbers)

    def layers_for(self, model: Model) -> dict[MlpMatrix, list[int]]:
        """The blocks to edit, by matrix."""
        if self.layers is not None:
            return {matrix: list(blocks) for matrix, blocks in self.layers.items()}
        count = model.cfg.n_layers
        first, last = round(0.6 * count), round(0.85 * count)
        return {"out": sorted({first + round(i * (last - first) / 4) for i in range(5)} & set(range(count)))}


@checked
def ultraedit(
    model: Model,
    requests: Requests,
    *,
    config: UltraEditConfig | None = None,
    memory: EditMemory | None = None,
    on_unhealthy: OnUnhealthy = "warn",
    progress: bool = True,
) -> Edit:
    """UltraEdit (Gu et al. 2025, arXiv 2505.14679; XiaojieGu/UltraEdit): one normalised gradient step in closed form.

    With h what a matrix multiplies where a token of a target is predicted, and g the gradient of the mean loss there by
    the product, both normalised (h', g') by running means and deviations over all batches so far, the change X of the
    matrix makes |X|^2 + |H X - V|^2 least, where V has the rows -learning_rate |h'|^2 g'. Matrices of one shape share
    their statistics.

    Args:
        requests: What to write, all in one batch; the authors write 100 at a time.
        memory: of the sequence that this batch goes on with: the running statistics of its earlier batches. None: this
            batch alone. It is changed once the edit is computed.
        progress: shows a bar.

    Returns:
        An Edit with an update for each matrix, of the rank of the number of the targets' tokens, at most the matrix's.

    Raises:
        EditError: a weight or the update is not finite, there is one token of a target in all (it has no deviation), or
            the edit is unhealthy and `on_unhealthy` is "raise". No weight is changed.
        ValueError: no or contradicting requests, no such layer or matrix, a prompt that does not fit, or the memory of
            another method or of other numbers.
    """
    config = UltraEditConfig() if config is None else config
    requests = as_requests(requests)
    check_requests(requests)
    layers = config.layers_for(model)
    places = sorted((layer, matrix) for matrix, blocks in layers.items() for layer in blocks)
    weights = {place: finite_matrix(model, *place) for place in places}
    used = as_json(replace(config, layers=layers))
    memory = EditMemory() if memory is None else memory
    memory.check("ultraedit", used)

    parts = [requests[i : i + config.requests_per_pass] for i in range(0, len(requests), config.requests_per_pass)]
    bar = tqdm(parts, desc="ultraedit", unit="pass", disable=not progress)
    passes = [_target_rows(model, part, places) for part in bar]
    statistics = {weight.shape: _Statistics.of(memory, weight.shape) for weight in weights.values()}
    for rows in passes:
        for place, pair in rows.items():
            statistics[weights[place].shape].update(torch.cat(pair, dim=1))
    factors = {
        place: _step([rows[place] for rows in passes], statistics[weights[place].shape], config.learning_rate)
        for place in places
    }
    if not all(side.isfinite().all() for pair in factors.values() for side in pair):
        raise EditError("The update is not finite. No weight was changed. Check the model's weights (NaN?).")
    edit = Edit.of(model, requests, factors, method="ultraedit", config=used, on_unhealthy=on_unhealthy)
    memory.keep("ultraedit", used, {k: v for each in statistics.values() for k, v in each.tensors().items()})
    return edit


def _target_rows(model: Model, requests: Sequence[EditRequest], places: Sequence[_Place]) -> Mapping[_Place, _Rows]:
    """(h, g) where the targets' tokens are predicted, by matrix."""
    texts = [Continuation(request.text, request.target, space=request.space) for request in requests]
    batch = run_until(model, target_rows(model, texts), min(layer for layer, _ in places))
    where = batch.rows, batch.positions
    found = inputs_and_gradients(
        model,
        batch,
        places,
        lambda final: -target_log_probabilities(logits(model, final[where]), batch.targets).mean(),
    )
    return {place: (h[where], g[where]) for place, (h, g) in found.items()}


def _step(
    passes: Iterable[tuple[Tensor, Tensor]], statistics: "_Statistics", learning_rate: float
) -> tuple[Float[Tensor, "d_in rank"], Float[Tensor, "rank d_out"]]:
    """The factors of X = HT (H HT + I)^-1 V, which is (HT H + I)^-1 HT V."""
    h, g = (in_float64(torch.cat(each)) for each in zip(*passes, strict=True))
    h_hat, g_hat = statistics.normalised(torch.cat([h, g], dim=1)).split([h.shape[1], g.shape[1]], dim=1)
    v = -learning_rate * h_hat.square().sum(1, keepdim=True) * g_hat
    right = torch.linalg.solve(h @ h.T + torch.eye(len(h)).to(h), v)
    return least_rank(h.T.float().contiguous(), right.float())


@dataclass
class _Statistics:
    """Mean and deviation of rows z = [h, g] of matrices of one shape, over all passes so far (Welford)."""

    name: str
    count: int
    mean: Float[Tensor, " d"]
    squares: Float[Tensor, " d"]

    @classmethod
    def of(cls, memory: EditMemory, shape: torch.Size) -> "_Statistics":
        """Those of a memory; if it has none yet, those of no rows."""
        name, none = f"{shape[0]}x{shape[1]}", torch.zeros(sum(shape), dtype=torch.float64)
        memory.expect(**{f"{name}.count": (1,), f"{name}.mean": none.shape, f"{name}.squares": none.shape})
        mean, squares = (memory.tensors.get(f"{name}.{each}", none).clone() for each in ("mean", "squares"))
        return cls(name, int(memory.tensors.get(f"{name}.count", torch.zeros(1))[0]), mean, squares)

    def update(self, rows: Float[Tensor, "token d"]) -> None:
        """Takes in the rows of a pass."""
        rows = in_float64(rows).cpu()
        more, total = len(rows), self.count + len(rows)
        step = rows.mean(0) - self.mean
        within = more * rows.var(0) if more > 1 else torch.zeros_like(step)
        self.squares += within + self.count * more * step.square() / total
        self.mean += more * step / total
        self.count = total

    def normalised(self, rows: Float[Tensor, "token d"]) -> Float[Tensor, "token d"]:
        """(z - mean) / deviation."""
        if self.count < 2:
            raise EditError(
                "The target is one token, and UltraEdit normalises by the deviation among the targets' tokens. No "
                "weight was changed. Write at least 2 requests at once."
            )
        deviation = (self.squares / (self.count - 1 + _EPSILON)).sqrt() + _EPSILON
        return (rows - self.mean.to(rows)) / deviation.to(rows)

    def tensors(self) -> dict[str, Tensor]:
        """What a memory keeps of them."""
        count = torch.tensor([self.count], dtype=torch.float64)
        return {
            f"{self.name}.{name}": each
            for name, each in (("count", count), ("mean", self.mean), ("squares", self.squares))
        }
