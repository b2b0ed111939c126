"""The prompts of facts, requests and records, put in another way: in a chat template, under an instruction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from rome_lens.checking import checked
from rome_lens.data.records import Continuation, EditRecord, EditRequest, Fact, QuestionRecord
from rome_lens.models import Model, user_turn

Asking = Fact | EditRequest | Continuation | EditRecord | QuestionRecord
T = TypeVar("T", bound=Fact | EditRequest | Continuation | EditRecord | QuestionRecord)


@checked
def in_chat(
    model: Model, asking: str | Asking, *, earlier: Sequence[tuple[str, str]] = (), **options: Any
) -> str | Asking:
    """The same with every prompt as a user's turn in the model's chat template, before the model's answer.

    The subject keeps its {}, so its positions are those in the template. Whether a space stands before an answer is
    decided anew, by how the template ends. A text may hold a {} as well: `in_chat(model, "{}")` is the template itself.

    Args:
        model: Gives the template; not run.
        asking: A text, Fact, EditRequest, Continuation, Question, EditRecord or QuestionRecord; left unchanged.
        earlier: Turns before, each (what the user said, what the model answered).
        options: What the template asks for besides, such as enable_thinking=False.

    Raises:
        ValueError: The model's tokenizer has no chat template, or one that asks for no such option.
        FormatError: The template is damaged, refuses the turns, or goes on without end.
    """
    wrap: Callable[[str], str] = partial(user_turn, model, earlier=earlier, **options)
    return wrap(asking) if isinstance(asking, str) else put(asking, wrap)


def put(asking: T, wrap: Callable[[str], str]) -> T:
    """The same with every prompt in other words. A space before answers is decided anew."""
    given: Any = asking
    if isinstance(asking, Fact | EditRequest | Continuation):
        return replace(given, prompt=wrap(asking.prompt), space=None)
    words: dict[str, Any] = {
        name: tuple(map(wrap, getattr(asking, name)))
        for name in ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
        if hasattr(asking, name)
    }
    if isinstance(asking, EditRecord):
        return replace(given, request=put(asking.request, wrap), **words)
    kinds = {name: _put_each(getattr(given, name), wrap) for name in ("portability", "locality")}
    return replace(given, request=put(given.request, wrap), **words, **kinds)


def _put_each(
    kinds: Mapping[str, tuple[Continuation, ...]], wrap: Callable[[str], str]
) -> dict[str, tuple[Continuation, ...]]:
    return {kind: tuple(put(question, wrap) for question in questions) for kind, questions in kinds.items()}
