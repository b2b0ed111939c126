"""Instructions in AlpacaEval's schema, and what a model answers to them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import trange

import rome_lens as rl
from rome_lens.data.readers.reading import parse_list, text_field
from rome_lens.data.record_files import read_records
from rome_lens.models import Model

_AT_ONCE = 16  # of about the same length: a row that is done waits for the others


def read_instructions(path: Path, fields: Sequence[str] = ("instruction",)) -> list[dict[str, str]]:
    """These fields of a file in AlpacaEval's schema; others of some system's outputs are `output` and `generator`.

    Raises:
        FormatError: The file is damaged, or a record lacks one of them.
    """

    def read(row: Mapping[str, Any], _: int) -> dict[str, str]:
        return {name: text_field(row[name], name) for name in fields}

    return parse_list(read_records(path), str(path), read, strict=True, unused=re.compile(".*"))


def answers(model: Model, instructions: Sequence[str], new_tokens: int) -> list[str]:
    """What the model answers."""
    prompts = as_asked(model, instructions)
    return [each.text for each in rl.evaluate.generate_answers(model, prompts, new_tokens=new_tokens, stops=())]


def own_answers(model: Model, path: Path, new_tokens: int = 120) -> list[str]:
    """The file's instructions, as they are asked, each with what the model goes on with."""
    prompts = as_asked(model, [row["instruction"] for row in read_instructions(path)])
    alike = sorted(prompts, key=len)
    written: dict[str, tuple[int, ...]] = {}
    for start in trange(0, len(alike), _AT_ONCE, desc="own answers", unit="batch"):
        batch = alike[start : start + _AT_ONCE]
        found = rl.evaluate.generate_answers(model, batch, new_tokens=new_tokens, stops=())
        written |= {prompt: each.tokens for prompt, each in zip(batch, found, strict=True)}
    return [prompt + model.tokenizer.decode(written[prompt], skip_special_tokens=True) for prompt in prompts]


def as_asked(model: Model, instructions: Sequence[str]) -> list[str]:
    """The instructions in the model's chat template, if it has one."""
    chat = model.tokenizer.chat_template
    return [str(rl.data.in_chat(model, text)) if chat else text for text in instructions]
