"""Protocols as data: how a question is put, how the answer is read, and how it is judged.

The same edit has a score under each protocol, and they differ: an answer that is probable by teacher forcing need not
be what the model writes (Yang et al. 2025, arXiv 2502.11177).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any, Literal

from rome_lens.checking import check_whole, checked
from rome_lens.data.prompts import in_chat, put
from rome_lens.data.records import PLACE, EditRecord, Question, QuestionRecord, check_template
from rome_lens.evaluate.answers import NEW_TOKENS, STOPS, Answer, generate_answers
from rome_lens.evaluate.judges import Judge, contains_answer, exact_match, verdict
from rome_lens.evaluate.likelihood import Prediction, mean_log_probabilities, predict_kinds, with_means
from rome_lens.evaluate.scorers.counterfact import score_record
from rome_lens.models import Model

Ask = Literal["bare", "instruction", "chat"]
Read = Literal["probability", "teacher_forced", "generated"]
Questions = Mapping[str, Sequence[Question]]
INSTRUCTION = "Please answer the question:\n\nQ: {}\nA:"


@checked
@dataclass(frozen=True)
class Protocol:
    """How the questions of a record are put, read and judged; the metrics are in docs/protocols.md.

    Attributes:
        name: What its rows are called.
        read: "probability": geometric mean of the answer's token probabilities, compared with those of the answer that
            competes (ROME, section 3.4); "teacher_forced": share of the answer's tokens that are the most probable ones
            after the question and the answer's tokens before them (EasyEdit); "generated": what the model writes by
            itself (WILD; `generate_answers`).
        ask: "bare": the question alone; "instruction": in the place {} of `instruction`; "chat": as a user's turn in
            the model's chat template.
        judge: Of written answers: `judge(question, answers, written)` gives 0 to 1. `exact_match`, `contains_answer`,
            a `ModelJudge`, or a function of your own.
        instruction: For "instruction", a text with one {}; WILD's.
        new_tokens: The most tokens that are written.
        stops: Texts that end what is written.
    """

    name: str
    read: Read
    ask: Ask = field(default="bare", kw_only=True)
    judge: Judge = field(default=exact_match, kw_only=True)
    instruction: str = field(default=INSTRUCTION, kw_only=True)
    new_tokens: int = field(default=NEW_TOKENS, kw_only=True)
    stops: tuple[str, ...] = field(default=STOPS, kw_only=True)

    def __post_init__(self) -> None:
        check_template(self.instruction, "instruction")
        check_whole(new_tokens=self.new_tokens)

    @property
    def reading(self) -> "Protocol":
        """The protocol without its name and judge: what is read is the same for all that share it."""
        return replace(self, name="", judge=exact_match)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("probability", "probability"),
        Protocol("teacher_forced", "teacher_forced"),
        Protocol("generated", "generated"),
        Protocol("generated_contains", "generated", judge=contains_answer),
        Protocol("generated_instruction", "generated", ask="instruction"),
        Protocol("probability_chat", "probability", ask="chat"),
        Protocol("teacher_forced_chat", "teacher_forced", ask="chat"),
        Protocol("generated_chat", "generated", ask="chat"),
        Protocol("generated_chat_contains", "generated", ask="chat", judge=contains_answer),
    )
}
"""The protocols that `score_edits` knows by name."""


def read_record(model: Model, record: Any, protocol: Protocol) -> Mapping[str, Any]:
    """What the model says to a record's questions, before anything is judged: numbers, predictions or answers."""
    if not isinstance(record, EditRecord | QuestionRecord):
        raise TypeError(
            f"A protocol asks the questions of an EditRecord or a QuestionRecord; this is a {type(record).__name__}, "
            "which has a scorer of its own. Give it as score=... (docs/protocols.md)."
        )
    record = _put(model, record, protocol)
    if protocol.read == "probability":
        return (
            score_record(model, record) if isinstance(record, EditRecord) else _probabilities(model, record, protocol)
        )
    questions = _scored(protocol, record)
    if protocol.read == "teacher_forced":
        return predict_kinds(model, questions)
    prompts = [question.prompt for asked in questions.values() for question in asked]
    written = iter(generate_answers(model, prompts, new_tokens=protocol.new_tokens, stops=protocol.stops))
    return {group: [next(written) for _ in asked] for group, asked in questions.items()}


def judged(
    protocol: Protocol, record: EditRecord | QuestionRecord, now: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, float]:
    """The scores of a record, from what `read_record` gives now and gave before the edit."""
    if protocol.read == "probability":
        return dict(now)
    score: Callable[..., float] = _predicted if protocol.read == "teacher_forced" else partial(_written, protocol.judge)
    scores = {
        group: fmean(score(group, *each) for each in zip(asked, now[group], before[group], strict=True))
        for group, asked in _scored(protocol, record).items()
        if asked
    }
    return with_means(scores)


def record_questions(record: EditRecord | QuestionRecord) -> dict[str, tuple[Question, ...]]:
    """A record's questions: efficacy, paraphrase, portability_KIND and locality_KIND (of an EditRecord, locality)."""
    request = record.request
    true = record.target_true if isinstance(record, EditRecord) else request.true_answer
    ask = partial(Question, space=request.space)
    found: dict[str, tuple[Question, ...]] = {"efficacy": (ask(request.text, request.target, instead=true),)}
    found["paraphrase"] = tuple(ask(prompt, request.target, instead=true) for prompt in record.paraphrase_prompts)
    if isinstance(record, EditRecord):
        neighbours = record.neighborhood_prompts
        return found | {"locality": tuple(ask(text, record.target_true, instead=request.target) for text in neighbours)}
    for name, kinds, instead in (
        ("portability", record.portability, None),
        ("locality", record.locality, request.target),
    ):
        for kind, questions in kinds.items():
            found[f"{name}_{kind}"] = tuple(
                q if isinstance(q, Question) else Question(q.prompt, q.text, space=q.space, instead=instead)
                for q in questions
            )
    return found


def _put(model: Model, record: Any, protocol: Protocol) -> Any:
    if protocol.ask == "bare":
        return record
    if protocol.ask == "chat":
        return in_chat(model, record)
    return put(record, lambda text: protocol.instruction.replace(PLACE, text, 1))


def _scored(protocol: Protocol, record: EditRecord | QuestionRecord) -> Questions:
    """The questions that a protocol gives scores for: where the model writes by itself, locality needs no answer."""
    unanswered = protocol.read == "generated"
    return {
        group: [question for question in asked if question.text or (unanswered and group.startswith("locality"))]
        for group, asked in record_questions(record).items()
    }


def _probabilities(model: Model, record: QuestionRecord, protocol: Protocol) -> dict[str, float]:
    """Success where an answer is known that competes, and the magnitude everywhere."""
    questions = _scored(protocol, record)
    asked = [question for each in questions.values() for question in each]
    rivals = [replace(question, text=question.instead) for question in asked if question.instead]
    p = mean_log_probabilities(model, [*asked, *rivals]).double().exp().tolist()
    mine, others = iter(p[: len(asked)]), iter(p[len(asked) :])
    scores: dict[str, float] = {}
    for group, each in questions.items():
        pairs = [(next(mine), next(others) if question.instead else None) for question in each]
        if compared := [one > other for one, other in pairs if other is not None]:
            scores[group] = fmean(compared)
        if pairs:
            scores[f"p_{group}"] = fmean(one for one, _ in pairs)
    return with_means(scores)


def _predicted(group: str, question: Question, now: Prediction, before: Prediction) -> float:
    return now.agreement(before) if group.startswith("locality") else now.accuracy


def _written(judge: Judge, group: str, question: Question, now: Answer, before: Answer) -> float:
    if group.startswith("locality"):
        return float(now.tokens == before.tokens)
    return verdict(judge, question.prompt, (question.text, *question.aliases), now.text)
