"""How a change of the residual stream is spread over several layers' MLPs (MEMIT, arXiv 2210.07229, section 4.3)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from rome_lens.edit.covariance import KeyCovariance
from rome_lens.edit.key import subject_activations
from rome_lens.edit.targets import MemitTargets, subject_states
from rome_lens.edit.update import Update
from rome_lens.edit.weights import Edit
from rome_lens.errors import EditError
from rome_lens.models import Model, key_name

ClosedForm = Callable[[Float[Tensor, "request d_mlp"], KeyCovariance], Float[Tensor, "d_mlp request"]]
"""From keys and C to the left factor of an update; see closed_forms.py."""

Factors = dict[int, tuple[Float[Tensor, "d_mlp request"], Float[Tensor, "request d_model"]]]


def spread(
    model: Model,
    targets: MemitTargets,
    layers: Sequence[int],
    covariances: Mapping[int, KeyCovariance],
    form: ClosedForm,
    *,
    method: str,
    progress: bool,
) -> Factors:
    """The updates (left, right) by which the layers, ascending, bring the subjects' states to the targets.

    Each layer's keys, and what is still missing after the last one, are measured with the updates before it in the
    weights; afterwards these are bit for bit what they were.

    Raises:
        EditError: an update is not finite.
        CovarianceError: as `form`.
    """
    sought = torch.stack([value.vector for value in targets.values]).to(model.cfg.device)
    factors: Factors = {}
    for done, layer in enumerate(tqdm(layers, desc=method, unit="layer", disable=not progress)):
        so_far = Edit(tuple(Update(edited, *pair) for edited, pair in factors.items()), targets.requests)
        with so_far.applied(model):
            keys = mean_keys(model, layer, targets)
            missing = sought - subject_states(model, layers[-1], targets.requests, token=targets.search["token"])
        share = (missing / (len(layers) - done)).cpu()
        factor = form(keys.cpu().double(), covariances[layer]).float()
        if not (factor.isfinite().all() and share.isfinite().all()):
            raise EditError(
                f"The update of layer {layer} is not finite. No weight was changed. Use other contexts, or covariances "
                "from more text."
            )
        factors[layer] = factor, share
    return factors


def mean_keys(model: Model, layer: int, targets: MemitTargets) -> Float[Tensor, "request d_mlp"]:
    """k* of each request: its key's mean over the contexts."""
    asked = [(request, context) for request in targets.requests for context in targets.contexts]
    keys = subject_activations(model, key_name(layer), layer, asked, token=targets.search["token"])
    return keys.unflatten(0, (len(targets.requests), -1)).mean(1)
