"""Which subjects an edit would reach most, out of a bank whose keys are kept: what `preserve="auto"` preserves."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import platformdirs
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.checking import check_whole, checked
from rome_lens.data.readers.subjects import load_subjects
from rome_lens.data.records import PLACE, EditRequest, Fact, fill
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import covariances_for
from rome_lens.edit.methods.closed_forms import emmet_factor
from rome_lens.edit.methods.requests import Requests, as_requests
from rome_lens.edit.search.contexts import EditedToken
from rome_lens.edit.search.key import subject_activations
from rome_lens.models import Model, in_float64, key_name, model_identity, output_matrix
from rome_lens.models.tokens import tokenize
from rome_lens.storage import check_shapes, load_tensors, plain, save_tensors

_KIND = "rome_lens bank keys 2"
LEAST_SHARE = 0.1  # of what an edit adds at its own prompt; what gets less is not worth a dimension
MOST_SUBJECTS = 32
_PART_OF_RANK = 4  # one of so many dimensions at most is spent


@checked
def near_subjects(
    model: Model,
    requests: Requests,
    *,
    covariances: Mapping[int, KeyCovariance] | None = None,
    exclude: Sequence[str] = (),
    most: int = MOST_SUBJECTS,
    least: float = LEAST_SHARE,
) -> pd.DataFrame:
    """The subjects that an edit of these requests would reach most, out of those that ship (`load_subjects`).

    They are put into the request's own prompt, and the share of the edit that they get is told from the keys at their
    last tokens, as in `forecast_bleed_over`.

    Args:
        model: Model to run; left unchanged. Its keys of the subjects are kept in the user's cache.
        requests: what is to be written.
        covariances: as in `memit`.
        exclude: subjects that are not to be among them.
        most: how many, at most. There are fewer where their keys would take more than a quarter of a layer's rank.
        least: the least share.

    Returns:
        A row for each, the largest share first: subject, prompt, share.

    Raises:
        CovarianceError: a covariance is of another layer or model, or singular.
        ValueError: no requests, `most` is below 1, or no such layer.
    """
    check_whole(most=most)
    covariances = covariances_for(model, covariances)
    for layer, covariance in covariances.items():
        covariance.check(model, layer)
    return reached_most(model, as_requests(requests), covariances, emmet_factor, exclude, most, least)


def auto_prompts(
    model: Model,
    requests: Sequence[EditRequest],
    covariances: Mapping[int, KeyCovariance],
    form: Callable[..., Float[Tensor, "d_mlp request"]],
    token: EditedToken,
) -> list[str]:
    """What `preserve="auto"` stands for: the prompts of `near_subjects`, by the method's own closed form."""
    if token not in ("subject_end", "subject_last"):
        raise ValueError(
            f"preserve is 'auto' and token is {token!r}, expected 'subject_end', whose keys the bank holds. List the "
            "prompts to preserve."
        )
    return list(reached_most(model, requests, covariances, form)["prompt"])


def reached_most(
    model: Model,
    requests: Sequence[EditRequest],
    covariances: Mapping[int, KeyCovariance],
    form: Callable[..., Float[Tensor, "d_mlp request"]],
    exclude: Sequence[str] = (),
    most: int = MOST_SUBJECTS,
    least: float = LEAST_SHARE,
) -> pd.DataFrame:
    """`near_subjects` by a closed form. Of several layers, and of several requests, the largest share counts."""
    subjects = load_subjects()
    shares = torch.zeros(len(requests), len(subjects), dtype=torch.float64)
    for layer, covariance in covariances.items():
        asked = [(request, PLACE) for request in requests]
        keys = in_float64(subject_activations(model, key_name(layer), layer, asked))
        left = form(keys, covariance)
        here = kept_bank_keys(model, layer, subjects).to(left) @ left / (keys * left.T).sum(-1)
        shares = torch.maximum(shares, here.T.abs().cpu())
    others = [*(request.subject for request in requests), *exclude]
    for i, fact in enumerate(subjects):
        if any(same_name(fact.subject, other) for other in others):
            shares[:, i] = 0.0
    best = shares.max(0)
    room = min(len(output_matrix(model, layer)) for layer in covariances) // _PART_OF_RANK
    rows: list[tuple[str, str, float]] = []
    places = set[tuple[int, ...]]()
    for i in best.values.argsort(descending=True).tolist():
        share, prompt = best.values[i].item(), fill(requests[int(best.indices[i])].prompt, subjects[i].subject)
        ids = tokenize(model, prompt).ids
        more = places | {ids[:end] for end in range(1, len(ids) + 1)}
        if share < least or len(rows) == most or len(more) > room:
            break
        places = more
        rows.append((subjects[i].subject, prompt, share))
    return pd.DataFrame(rows, columns=["subject", "prompt", "share"])


def same_name(one: str, other: str) -> bool:
    """Whether the names may be of one thing: one is in the other."""
    one, other = (name.lower().removeprefix("the ") for name in (one, other))
    return one in other or other in one


def kept_bank_keys(model: Model, layer: int, subjects: Sequence[Fact]) -> Float[Tensor, "subject d_mlp"]:
    """The key at each subject's last token, in float32, on the CPU. They are computed once for a model, as it is now,
    and a layer, and kept in the user's cache.
    """
    known = model_identity(model)
    identity = known | {"layer": layer, "subjects": plain([fact.text for fact in subjects])}
    name = f"{known['weights'][:32]}-{layer}-{len(subjects)}.safetensors"
    path = platformdirs.user_cache_path("rome_lens") / "keys" / name
    kept = _read(path, identity, (len(subjects), len(output_matrix(model, layer))))
    if kept is not None:
        return kept
    asked = [(EditRequest(fact.prompt, fact.subject, "-"), PLACE) for fact in subjects]
    keys = subject_activations(model, key_name(layer), layer, asked).cpu()
    with suppress(OSError):  # a cache that cannot be written to only costs time
        save_tensors(path, {"keys": keys}, kind=_KIND, facts={"identity": identity}, overwrite=True)
    return keys


def _read(path: Path, identity: dict[str, object], shape: tuple[int, int]) -> Tensor | None:
    try:
        tensors, facts = load_tensors(path, kind=_KIND, facts={"identity": dict})
        check_shapes(tensors, keys=shape)
    except (OSError, ValueError):  # not there, not readable, or damaged: then it is computed
        return None
    return tensors["keys"] if facts["identity"] == identity else None
