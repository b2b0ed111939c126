"""Facts, requests to change them, and where their subjects' tokens are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rome_lens.checking import checked
from rome_lens.errors import DataWarning, warn
from rome_lens.models import Model
from rome_lens.models.teacher_forcing import TargetRow
from rome_lens.models.tokens import TokenizedText, tokenize, tokenize_continuation

PLACE = "{}"


def fill(template: str, value: str) -> str:
    """The template with its {} replaced. Other braces are text."""
    return template.replace(PLACE, value, 1)


def template_about(subject: str, text: str) -> str:
    """The text with {} in place of the subject's first occurrence.

    Raises:
        ValueError: the subject does not occur in the text.
    """
    check_text(subject, "subject")
    if subject not in text:
        raise ValueError(f"The subject {subject!r} is not in the prompt {text!r}. Spell both alike.")
    return text.replace(subject, PLACE, 1)


def check_template(template: str, what: str) -> None:
    """Raises unless `template` is a string that holds exactly one {}."""
    if not isinstance(template, str):
        raise TypeError(f"The {what} is {template!r}, expected a string with one {{}}.")
    if template.count(PLACE) != 1:
        raise ValueError(
            f"The {what} {template!r} holds {template.count(PLACE)} times {{}}, expected exactly one. "
            f"Write the {what} with {{}} where the subject stands."
        )


def check_text(value: str, what: str) -> None:
    """Raises unless `value` is a string that is not empty or blank."""
    if not isinstance(value, str):
        raise TypeError(f"The {what} is {value!r}, expected a string.")
    if not value.strip():
        raise ValueError(f"The {what} is empty ({value!r}). Give at least one character that is not a space.")


def check_subject(subject: str) -> None:
    """Raises unless `subject` is a text that neither begins nor ends with a space."""
    check_text(subject, "subject")
    if subject != subject.strip():
        raise ValueError(
            f"The subject {subject!r} begins or ends with a space, which may belong to a neighbour's token. "
            "Put spaces into the prompt."
        )


def check_prompts(prompts: Sequence[str], name: str = "prompts") -> None:
    """Raises unless `prompts` is a sequence of one text or more, none of them blank."""
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"{name} is {prompts!r}, expected a list of one text or more.")
    for prompt in prompts:
        check_text(prompt, name.removesuffix("s"))


@dataclass(frozen=True)
class _AboutSubject:
    """A prompt about a subject: `prompt` holds one {}, the place of `subject`."""

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
    """What a model may know: the prompt's continuation.

    Attributes:
        prompt: a text with one {}, the place of the subject: "{} is located in the city of".
        subject: "The Eiffel Tower".
        answer: the continuation, without the leading space ("Paris"), or None: whatever the model says.
        space: whether a space stands before the answer: None decides as such texts are written (`Continuation`).
    """

    answer: str | None = None
    space: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answer is not None:
            check_text(self.answer, "answer")

    @classmethod
    def from_text(cls, text: str, subject: str, answer: str | None = None, *, space: bool | None = None) -> "Fact":
        """A fact from a whole sentence: the subject's first occurrence in it is the subject.

        Raises:
            ValueError: the subject does not occur in the text.
        """
        return cls(template_about(subject, text), subject, answer, space=space)


@checked
@dataclass(frozen=True)
class EditRequest(_AboutSubject):
    """A fact to write into a model (paper section 3): after the prompt about the subject, the model shall say `target`.

    Attributes:
        prompt: a text with one {}, the place of the subject.
        subject: the subject.
        target: the new object, without the leading space ("Rome"); one token or several.
        true_answer: The object before the edit ("Paris"), for methods that need it (`kn`); None: not known.
        space: whether a space stands before the target, and before the true answer, wherever they are asked for: None
            decides as such texts are written (`Continuation`).
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
    """A text and what is asked to follow it.

    Attributes:
        prompt: the text.
        text: what follows, without the space between them.
        space: whether a space stands between them. True: one, unless there is one already; False: none; None: one but
            where writing has none: within Chinese, Japanese, Thai and other scripts without spaces, after an opening
            bracket or quotation mark, a currency sign, a hyphen, a slash, a tag, a special token of the tokenizer or
            white space, and before a mark that closes or an 's.
    """

    prompt: str
    text: str
    space: bool | None = field(default=None, kw_only=True)


@checked
@dataclass(frozen=True)
class EditRecord:
    """A request with the prompts that tell how well the edit did (the schema of CounterFact, paper section 3.4).

    Attributes:
        request: what to write.
        target_true: the object before the edit.
        paraphrase_prompts: other ways to ask the same; the target shall follow.
        neighborhood_prompts: prompts about other subjects with the same true object; it shall still follow.
        attribute_prompts: prompts about subjects whose true object is the new target.
        generation_prompts: open starts about the subject.
        case_id: the number in the data set.
        relation: Wikidata's name of the relation, such as P36, or "".
        target_id: Wikidata's name of the new target, such as Q220, or "": it finds reference texts about it.
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
        """What the record says the model knew before the edit."""
        return Fact(self.request.prompt, self.request.subject, self.target_true, space=self.request.space)


@checked
@dataclass(frozen=True)
class QuestionRecord:
    """A request with questions that have one answer each (the data sets zsRE and KnowEdit).

    Attributes:
        request: what to write.
        paraphrase_prompts: other ways to ask the same; the target shall follow.
        portability: questions by kind whose answer follows from the new fact; the model shall give it.
        locality: questions by kind that the edit shall not touch, with their true answers.
        case_id: the number in the data set.
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
    """The prompt's tokens, and which of them hold the subject's characters.

    The positions come from the tokenizer's character offsets: a BOS token, a leading space, a second occurrence of the
    subject, or a token that reaches beyond the subject's end do not move them.

    Raises:
        ValueError: no token covers the subject; and as `tokenize`.
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
    """Each prompt with its continuation as tokens, and the position at which the continuation starts.

    Raises:
        ValueError: as `tokenize_continuation`.
    """
    encoded = [tokenize_continuation(model, c.prompt, c.text, space=c.space) for c in continuations]
    return [(text.ids, start) for text, start in encoded]
