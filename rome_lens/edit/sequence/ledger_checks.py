"""Which facts can be on one ledger."""

from collections.abc import Sequence

from rome_lens.data.records import EditRequest
from rome_lens.edit.methods.preserve import check_room, edited_place, preserved_prompts
from rome_lens.edit.search.contexts import EditedToken
from rome_lens.errors import EditError
from rome_lens.models import Model


def check_together(
    model: Model, layer: int, requests: Sequence[EditRequest], preserve: Sequence[str], token: EditedToken
) -> None:
    """Raises unless one edit of a layer can answer all requests, with these prompts preserved.

    Raises:
        EditError: two requests have one key, a prompt to preserve has a request's, or there is no room for so many.
        ValueError: two targets for one prompt.
    """
    by_place: dict[tuple[int, ...], EditRequest] = {}
    for request in requests:
        other = by_place.setdefault(edited_place(model, request, token), request)
        if other != request and other.text == request.text:
            raise ValueError(
                f"{request.text!r} is to be {other.target!r} and {request.target!r}. Keep one; a fact that is on the "
                "ledger has to be withdrawn first."
            )
        if other != request:
            raise EditError(
                f"{other.text!r} and {request.text!r} have one key: up to the edited token they are the same text. "
                "Keep one. No weight was changed."
            )
    preserved = preserved_prompts(model, preserve, requests, [layer], token=token)
    check_room(model, layer, len(preserved.places), len(requests))
