"""Judges of written answers: functions of a question, the answers that count, and what was written, to 0 or 1."""

import hashlib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsFloat

from rome_lens.calling import undisturbed_call
from rome_lens.checking import check_returned, checked
from rome_lens.data.records import Continuation
from rome_lens.evaluate.likelihood import mean_log_probabilities
from rome_lens.models import Model, user_turn

Judge = Callable[[str, Sequence[str], str], float]
"""A judge: `judge(question, answers, written)` gives 0 to 1."""

GRADE = """Question: {question}
Correct answer: {answer}
Answer given: {written}
Does the answer given say what the correct answer says?
A: yes
B: no
Reply with the letter alone."""
PREFERENCE = """Instruction: {instruction}
Answer A: {first}
Answer B: {second}
Which answer follows the instruction better?
Reply with the letter alone."""


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces (SQuAD's rule, as WILD's code has it)."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


@checked
def exact_match(question: str, answers: Sequence[str], written: str) -> float:
    """1 if what was written is one of the answers, after `normalize_answer`; else 0 (WILD, arXiv 2502.11177)."""
    return float(normalize_answer(written) in map(normalize_answer, answers))


@checked
def contains_answer(question: str, answers: Sequence[str], written: str) -> float:
    """1 if one of the answers stands in what was written, word by word after `normalize_answer`; else 0."""
    words = f" {normalize_answer(written)} "
    return float(any(f" {normalize_answer(answer)} " in words for answer in answers if normalize_answer(answer)))


@checked
@dataclass(frozen=True)
class ModelJudge:
    """A judge that is a causal model: the more probable of two letters is its verdict.

    A model is asked whether an answer is right; the next token's probabilities of A and B decide, so nothing is
    generated or parsed. A small model is a poor judge: check its verdicts against some of your own before its scores
    are called results. Judge with a model that is not edited.

    Attributes:
        model: Model to ask; left unchanged.
        name: What the judge is called in tables.
        prompt: With {question}, {answer} and {written}.
        chat: Whether the prompt is put through the model's chat template.
        chat_options: What that template asks for besides, such as {"enable_thinking": False}.
    """

    model: Model
    name: str = field(kw_only=True)
    prompt: str = field(default=GRADE, kw_only=True)
    chat: bool = field(default=False, kw_only=True)
    chat_options: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        _check_fields("prompt", self.prompt, "question", "answer", "written")

    def __call__(self, question: str, answers: Sequence[str], written: str) -> float:
        """1 if A (right) is more probable than B; else 0."""
        asked = _filled(self.prompt, question=question, answer=" or ".join(answers), written=written)
        return float(_first_letter(self.model, asked, self.chat, self.chat_options) == "A")


@checked
@dataclass(frozen=True)
class Preference:
    """Which of two outputs a model prefers, asked in both orders.

    AlpacaEval's win rate (tatsu-lab/alpaca_eval) of one system against another, with a local model for the judge. A
    judge that prefers a place, whatever stands there, gives 0.5.

    Attributes:
        model: Model to ask; left unchanged.
        name: What the judge is called in tables.
        prompt: With {instruction}, {first} and {second}.
        chat: Whether the prompt is put through the model's chat template.
        chat_options: What that template asks for besides, such as {"enable_thinking": False}.
    """

    model: Model
    name: str = field(kw_only=True)
    prompt: str = field(default=PREFERENCE, kw_only=True)
    chat: bool = field(default=False, kw_only=True)
    chat_options: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        _check_fields("prompt", self.prompt, "instruction", "first", "second")

    def __call__(self, instruction: str, output: str, reference: str) -> float:
        """1 if the output is preferred in both orders, 0.5 if in one, 0 if in none."""
        wins = 0
        for first, second, mine in ((output, reference, "A"), (reference, output, "B")):
            asked = _filled(self.prompt, instruction=instruction, first=first, second=second)
            wins += _first_letter(self.model, asked, self.chat, self.chat_options) == mine
        return wins / 2


@checked
def judge_name(judge: Callable[..., float]) -> str:
    """What a judge is called in tables: its name, and for a model the start of its prompt's checksum."""
    if isinstance(judge, ModelJudge | Preference):
        return f"{judge.name}, prompt {hashlib.sha256(judge.prompt.encode()).hexdigest()[:8]}"
    return str(getattr(judge, "__name__", type(judge).__name__))


def verdict(judge: Judge, question: str, answers: Sequence[str], written: str) -> float:
    """What a judge gives, a number from 0 to 1; raises TypeError or ValueError if it gives something else."""
    given = check_returned(
        f"The judge {judge_name(judge)}", judge(question, answers, written), SupportsFloat, least=0.0, most=1.0
    )
    return float(given)


@undisturbed_call
def _first_letter(model: Model, asked: str, chat: bool, options: Mapping[str, Any]) -> Literal["A", "B"]:
    """The more probable of the two as the next token; A if both are equally so."""
    prompt = user_turn(model, asked, **options) if chat else f"{asked}\nAnswer:"
    a, b = mean_log_probabilities(model, [Continuation(prompt, "A"), Continuation(prompt, "B")]).tolist()
    return "A" if a >= b else "B"


def _filled(prompt: str, **values: str) -> str:
    """The prompt with its fields filled in; braces in the values are text."""
    return re.sub(rf"{{({'|'.join(values)})}}", lambda found: values[found[1]], prompt)


def _check_fields(what: str, prompt: str, *fields: str) -> None:
    if missing := [f"{{{name}}}" for name in fields if f"{{{name}}}" not in prompt]:
        raise ValueError(f"The judge's {what} {prompt[:60]!r}... lacks {', '.join(missing)}. Write them where they go.")
