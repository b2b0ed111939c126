"""The `requests` argument of all methods: one EditRequest, or several."""

from collections.abc import Sequence
from typing import TypeAlias

from rome_lens.data.records import EditRequest

Requests: TypeAlias = EditRequest | Sequence[EditRequest]


def as_requests(requests: Requests) -> list[EditRequest]:
    """The requests as a list. Raises ValueError if there are none."""
    if isinstance(requests, EditRequest):
        return [requests]
    if not requests:
        raise ValueError("requests is empty, expected one EditRequest or more.")
    return list(requests)


def only_request(requests: Requests, method: str) -> EditRequest:
    """The only request, for methods that write one. Raises ValueError if there are none, or several."""
    request, *others = as_requests(requests)
    if others:
        raise ValueError(
            f"{method} writes 1 request, but {1 + len(others)} were given. Write them at once with memit(model, "
            "requests), or one after the other with edit_sequence(model, records)."
        )
    return request
