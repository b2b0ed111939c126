"""Records whose questions hang together: several hops (MQuAKE), and tests with conditions (RippleEdits)."""

from dataclasses import dataclass, field
from typing import Literal

from rome_lens.checking import checked
from rome_lens.data.records import EditRequest, Question, check_prompts

RIPPLE_AXES = (
    "Relation_Specificity",
    "Logical_Generalization",
    "Subject_Aliasing",
    "Compositionality_I",
    "Compositionality_II",
    "Forgetfulness",
)


@checked
@dataclass(frozen=True)
class MultiHopRecord:
    """Facts to edit together, and a question whose answer follows from them over several hops (MQuAKE).

    Attributes:
        requests: What to write; `score_edits` gives a method all of them at once, as a list where there are several.
        questions: Ways to ask the same, all with one new answer and its aliases; `instead` is the answer before.
        hops: The single facts on the way, as they are after the edits.
        case_id: The number in the data set.
    """

    requests: tuple[EditRequest, ...]
    questions: tuple[Question, ...]
    hops: tuple[Question, ...] = ()
    case_id: int = 0

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("requests is empty, expected at least 1 EditRequest.")
        check_prompts([question.prompt for question in self.questions], "questions")

    @property
    def request(self) -> EditRequest:
        """The first of the requests."""
        return self.requests[0]


@checked
@dataclass(frozen=True)
class RippleQuery:
    """A question of RippleEdits.

    Attributes:
        prompt: The question's text, to be continued.
        answers: Each a value and its aliases; all of them have to be said.
    """

    prompt: str
    answers: tuple[tuple[str, ...], ...]


@checked
@dataclass(frozen=True)
class RippleTest:
    """A test of RippleEdits.

    Attributes:
        queries: Of which one ("OR") or all ("AND") have to be answered after the edit.
        condition: Which it is.
        before: Queries that have to be answered before the edit, or the test is not run.
    """

    queries: tuple[RippleQuery, ...]
    condition: Literal["OR", "AND"] = "OR"
    before: tuple[RippleQuery, ...] = ()


@checked
@dataclass(frozen=True)
class RippleRecord:
    """An edit with tests of what should follow from it and what should not change (RippleEdits, arXiv 2307.12976).

    Attributes:
        request: What to write.
        tests: By axis, those of RIPPLE_AXES that have any.
        case_id: The place in the file.
    """

    request: EditRequest
    tests: dict[str, tuple[RippleTest, ...]] = field(default_factory=dict)
    case_id: int = 0
