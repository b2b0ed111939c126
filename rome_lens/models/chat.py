"""Chats: a text as a user's turn, up to the start of the model's answer; and what of an answer is no thought."""

import re
from collections.abc import Sequence
from typing import Any

from rome_lens.models.kinds import Model
from rome_lens.models.parameters import check_model, prefix_ids
from rome_lens.models.templates import render

_WORD = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
_OPEN = rf"<{_WORD}>|\[THINK\]|◁think▷|<\|(?:begin_of_thought|START_THINKING)\|>|<\|channel\|>(?:analysis|commentary)"
_CLOSE = rf"</{_WORD}>|\[/THINK\]|◁/think▷|<\|(?:end_of_thought|END_THINKING)\|>|<\|channel\|>final<\|message\|>"
_TAG = re.compile(rf"(?P<open>{_OPEN})|{_CLOSE}", re.IGNORECASE)
_OPEN_AT_END = re.compile(rf"(?:{_OPEN})\s*\Z", re.IGNORECASE)


def user_turn(model: Model, text: str, *, earlier: Sequence[tuple[str, str]] = (), **options: Any) -> str:
    """The text in the chat template of the model's tokenizer, up to where the model's answer begins.

    What the model puts before every text by itself (`prefix_ids`, such as BOS) is left out where the template writes
    it too.

    Args:
        model: Gives the tokenizer; not run.
        text: What the user says.
        earlier: Turns before, each (what the user said, what the model answered).
        options: What the template asks for besides, such as enable_thinking=False.

    Raises:
        ValueError: the tokenizer has no chat template, or one that asks for no such option.
        FormatError: the template is damaged, refuses the turns, or goes on without end.
    """
    check_model(model)
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.chat_template:
        raise ValueError(
            f"{model.cfg.model_name} has no chat template, expected one in its tokenizer. Load a chat model, or set "
            "model.tokenizer.chat_template."
        )
    said = [turn for user, answer in earlier for turn in (("user", user), ("assistant", answer))]
    turns = [{"role": role, "content": content} for role, content in [*said, ("user", text)]]
    written = render(tokenizer, turns, options, f"The chat template of {model.cfg.model_name}")
    return written.removeprefix("".join(tokenizer.convert_ids_to_tokens(prefix_ids(model))))


def begins_in_thought(prompt: str) -> bool:
    """Whether a prompt ends in a tag, such as <think>, after which a model writes thoughts first."""
    return bool(_OPEN_AT_END.search(prompt))


def after_thoughts(written: str, *, inside: bool = False) -> str | None:
    """What was written after the last thought (<think>...</think> and the kind); None while one goes on.

    Args:
        written: With special tokens, which the tags may be.
        inside: Whether it begins in a thought.
    """
    start = 0
    for tag in _TAG.finditer(written):
        inside, start = tag["open"] is not None, tag.end()
    return None if inside else written[start:]
