"""Chat templates: a text as a user's turn, followed by the start of the model's answer."""

from collections.abc import Sequence

from rome_lens.models.kinds import Model
from rome_lens.models.parameters import bos_token, check_model


def user_turn(model: Model, text: str, *, earlier: Sequence[tuple[str, str]] = ()) -> str:
    """The text in the chat template of the model's tokenizer, up to where the model's answer begins.

    A BOS token that the template writes is left out where the model puts one before every text by itself.

    Args:
        model: Gives the tokenizer; not run.
        text: What the user says.
        earlier: Turns before, each (what the user said, what the model answered).

    Raises:
        ValueError: The tokenizer has no chat template.
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
    written: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return written.removeprefix(tokenizer.bos_token) if bos_token(model) else written
