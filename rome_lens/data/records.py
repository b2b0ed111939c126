"""Facts, requests to change them, and where their subjects' tokens are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rome_lens.checking import checked, remedies
from rome_lens.errors import DataWarning, warn
from rome_lens.models import Model
from rome_lens.models.teacher_forcing import TargetRow
from rome_lens.models.tokens import TokenizedText, check_unicode, tokenize, tokenize_continuation

PLACE = "{}"


def fill(template: str, value: str) -> str:
    """The template with its first {} replaced. Other braces are text."""
    return template.replace(PLACE, value, 1)


def template_about(subject: str, text: str) -> str:
    """The text with {} in place of the subject's first occurrence; or as it is, with a {} and without the subject."""
    check_text(subject, "subject")
    if subject not in text:
        if PLACE in text:
            return text
        raise ValueError(
            f"The subject {subject!r} is not in the prompt {text!r}. Spell both alike, or write {{}} where it stands."
        )
    return text.replace(subject, PLACE, 1)


def check_template(template: str, what: str) -> None:
    """Raises TypeError or ValueError unless `template` is a string with exactly one {}."""
    if not isinstance(template, str):
        raise TypeError(f"The {what} is {template!r}, expected a string with one {{}}.")
    if template.count(PLACE) != 1:
        raise ValueError(
            f"The {what} {template!r} holds {{}} {template.count(PLACE)} times, expected exactly once. "
            f"Write the {what} with {{}} where the subject stands."
        )
    check_unicode(template)


def check_text(value: str, what: str) -> None:
    """Raises TypeError or ValueError unless `value` is a string that is not blank."""
    if not isinstance(value, str):
        raise TypeError(f"The {what} is {value!r}, expected a string.")
    if not value.strip():
        raise ValueError(f"The {what} is empty ({value!r}). Give at least one character that is not a space.")
    check_unicode(value)


def check_subject(subject: str) -> None:
    """Raises TypeError or ValueError unless `subject` is a text without spaces at its ends."""
    check_text(subject, "subject")
    if subject != subject.strip():
        raise ValueError(
            f"The subject {subject!r} begins or ends with a space, which may belong to a neighbour's token. "
            "Put spaces into the prompt."
        )


def check_prompts(prompts: Sequence[str], name: str = "prompts") -> None:
    """Raises TypeError or ValueError unless `prompts` has at least one text, and no blank one."""
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"{name} is {prompts!r}, expected a list of one text or more.")
    for prompt in prompts:
        check_text(prompt, name.removesuffix("s"))


@dataclass(frozen=True)
class _AboutSubject:
    """A prompt about a subject: `prompt` holds one {}, where `subject` stands."""

    prompt: str
    subject: str

    def __post_init__(self) -> None:
        check_template(self.prompt, "prompt")
        check_subject(self.subject)

    @property
    def text(self) -> str:
        """The prompt with the subject in it."""
        return fill(self.prompt, self.subject)

    @property
    def subject_characters(self) -> tuple[int, int]:
        """Where the subject stands in `text`: [start, end)."""
        start = self.prompt.index(PLACE)
        return start, start + len(self.subject)


@checked
@dataclass(frozen=True)
class Fact(_AboutSubject):
    """A fact that a model may know: a prompt about a subject, and its continuation.

    Attributes:
        prompt: a text with one {}, where the subject stands: "{} is located in the city of".
        subject: "The Eiffel Tower".
        answer: the continuation, without the leading space ("Paris"); None: whatever the model predicts.
        space: whether a space stands before the answer; None: as in ordinary writing (see `Continuation`).
    """

    answer: str | None = None
    space: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answer is not None:
            check_text(self.answer, "answer")

    @classmethod
    def from_text(cls, text: str, subject: str, answer: str | None = None, *, space: bool | None = None) -> "Fact":
        """A fact from a whole sentence; {} takes the place of the subject's first occurrence.

        Raises:
            ValueError: the subject does not occur in the text.
        """
        return cls(template_about(subject, text), subject, answer, space=space)


@checked
@dataclass(frozen=True)
class EditRequest(_AboutSubject):
    """A fact to write into a model (paper section 3): `target` is to follow the prompt about the subject.

    Attributes:
        prompt: a text with one {}, where the subject stands.
        subject: the subject.
        target: the new object, without the leading space ("Rome"); one token or several.
        true_answer: the object before the edit ("Paris"), for methods that need it (`kn`); None: not known.
        space: whether a space stands before the target and the true answer; None: as in ordinary writing (see
            `Continuation`).
    """

    target: str
    true_answer: str | None = field(default=None, kw_only=True)
    space: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text(self.target, "target")
        if self.true_answer is not None:
            check_text(self.true_answer, "true answer")


@checked
@dataclass(frozen=True)
class Continuation:
    """A prompt and the text that is to follow it.

    Attributes:
        prompt: the prompt.
        text: the continuation, without the space between them.
        space: whether a space stands between them. True: one, unless there is one already; False: none; None: as in
            ordinary writing, which has none within Chinese, Japanese, Thai and other scripts without spaces, after an
            opening bracket or quotation mark, a currency sign, a hyphen, a slash, a tag, a special token of the
            tokenizer or white space, and before a closing mark or an 's.
    """

    prompt: str
    text: str
    space: bool | None = field(default=None, kw_only=True)


@checked
@dataclass(frozen=True)
class Question(Continuation):
    """A question with its answer, other names of the answer, and the answer that it is compared with.

    Attributes:
        text: The answer; "" where none is known: then only what the model writes before and after is compared.
        aliases: Other names of the answer.
        instead: The answer that competes, such as the one before the edit; None: none is known.
    """

    aliases: tuple[str, ...] = field(default=(), kw_only=True)
    instead: str | None = field(default=None, kw_only=True)


@checked
@dataclass(frozen=True)
class EditRecord:
    """A request with the prompts that evaluate the edit (the schema of CounterFact, paper section 3.4).

    Attributes:
        request: the fact to write.
        target_true: the object before the edit.
        paraphrase_prompts: other wordings of the prompt, which the target should follow.
        neighborhood_prompts: prompts about other subjects with the same true object, which it should still follow.
        attribute_prompts: prompts about subjects whose true object is the new target.
        generation_prompts: beginnings of texts about the subject.
        case_id: number of the record in the data set.
        relation: Wikidata's id of the relation, such as P36, or "".
        target_id: Wikidata's id of the new target, such as Q220, or ""; reference texts are found by it.
    """

    request: EditRequest
    target_true: str
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    case_id: int = 0
    relation: str = ""
    target_id: str = ""

    def __post_init__(self) -> None:
        check_text(self.target_true, "true target")
        for kind in ("paraphrase", "neighborhood", "attribute", "generation"):
            for prompt in getattr(self, f"{kind}_prompts"):
                check_text(prompt, f"{kind} prompt")
        if self.request.target.strip() == self.target_true.strip():
            warn(
                f"The record {self.case_id} asks for what is true already: target and true object of "
                f"{self.request.text!r} are both {self.target_true!r}. Its successes say nothing about an edit.",
                DataWarning,
            )

    @property
    def fact(self) -> Fact:
        """The fact before the edit, with the true object as its answer."""
        return Fact(self.request.prompt, self.request.subject, self.target_true, space=self.request.space)


@checked
@dataclass(frozen=True)
class QuestionRecord:
    """A request with questions that have one answer each (the data sets zsRE and KnowEdit).

    Attributes:
        request: the fact to write.
        paraphrase_prompts: other wordings of the prompt, which the target should follow.
        portability: by kind, questions whose answers follow from the new fact.
        locality: by kind, questions that the edit should not affect, with their true answers.
        case_id: number of the record in the data set.
    """

    request: EditRequest
    paraphrase_prompts: tuple[str, ...] = ()
    portability: Mapping[str, tuple[Continuation, ...]] = field(default_factory=dict)
    locality: Mapping[str, tuple[Continuation, ...]] = field(default_factory=dict)
    case_id: int = 0

    def __post_init__(self) -> None:
        for prompt in self.paraphrase_prompts:
            check_text(prompt, "paraphrase prompt")


def subject_range(model: Model, about: Fact | EditRequest) -> tuple[TokenizedText, range]:
    """The prompt's tokens, and the positions of those that hold the subject's characters.

    The positions come from the tokenizer's character offsets, so that a BOS token, a leading space, a second occurrence
    of the subject, or a token that reaches beyond the subject's end does not shift them.
    """
    text = tokenize(model, about.text)
    start, end = about.subject_characters
    positions = text.covering(start, end)
    if not positions:
        raise ValueError(
            f"The subject {about.subject!r} has no tokens in {about.text!r} under this model's tokenizer. "
            "Choose a subject that the tokenizer can read."
        )
    return text, positions


def target_rows(model: Model, continuations: Iterable[Continuation]) -> list[TargetRow]:
    """Each prompt with its continuation as tokens, and the position at which the continuation starts."""
    encoded = [tokenize_continuation(model, c.prompt, c.text, space=c.space) for c in continuations]
    return [(text.ids, start) for text, start in encoded]


def _texts_of(value: object) -> tuple[str, str, str] | None:
    """The prompt, with its {}, the subject and what follows, if that is what three texts in a row are."""
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(isinstance(part, str) for part in value):
        return None
    prompt, subject, last = value
    return (prompt if PLACE in prompt or not subject else prompt.replace(subject, PLACE, 1)), subject, last


def _as_fact(value: object) -> str:
    """What makes a Fact of what was given instead of one."""
    if texts := _texts_of(value):
        return f"Fact{texts}"
    if isinstance(value, list | tuple) and value:
        return _as_fact(value[0])
    if isinstance(value, _AboutSubject):
        return "Fact(request.prompt, request.subject)"
    return "Fact.from_text(text, subject)" if isinstance(value, str) else "Fact(prompt, subject, answer)"


def _as_request(value: object) -> str:
    """What makes an EditRequest of what was given instead of one."""
    if texts := _texts_of(value):
        return f"EditRequest{texts}"
    if hasattr(value, "request"):
        return "record.request"
    if isinstance(value, list | tuple) and value:
        return _as_request(value[0])
    whole = as_record(value)
    return f"{whole}[0].request" if whole.startswith("load") else 'EditRequest("... {} ...", subject, target)'


def as_record(value: object) -> str:
    """What makes a record, or records, of what was given instead."""
    if isinstance(value, Mapping) or hasattr(value, "columns"):
        return f"load_records({'[row]' if isinstance(value, Mapping) else 'frame'})"
    if isinstance(value, EditRequest):
        return "QuestionRecord(request, case_id=0)"
    if isinstance(value, list | tuple) and value and not _texts_of(value):
        return as_record(value[0])
    return f"QuestionRecord({_as_request(value) if _texts_of(value) else 'EditRequest(prompt, subject, target)'})"


remedies |= {Fact: _as_fact, EditRequest: _as_request}
