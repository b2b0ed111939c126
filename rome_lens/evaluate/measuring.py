"""What is measured on one record: a row for each state of the model, protocol and metric."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Protocol, SupportsFloat, TypeAlias, runtime_checkable

from rome_lens.checking import check_returned, remedies
from rome_lens.data.records import EditRequest, as_record
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.methods.memory import FactMemory
from rome_lens.errors import EditError, NotFiniteError
from rome_lens.evaluate import protocols as known
from rome_lens.evaluate.scorers.counterfact import score_record
from rome_lens.models import Model
from rome_lens.storage import plain

BASE = "base"


@runtime_checkable
class Record(Protocol):
    """A request and its number in a data set; where `requests` has several, they are edited together."""

    @property
    def case_id(self) -> int:
        """Its number, by which rows are kept."""

    @property
    def request(self) -> EditRequest:
        """What is to be edited."""


remedies[Record] = as_record

Scorer = Callable[..., Mapping[str, float]]
"""A score: `scorer(model, record)` gives its metrics' names and values."""
Method = Callable[[Model, EditRequest], Edit | FactMemory]
"""An editing method: `method(model, request)` computes the edit, or a memory, and leaves the model unchanged."""
Row = tuple[int, str, str, str, float, str]
State = tuple[str, str]  # of the model, and a protocol
Task: TypeAlias = tuple[Record, Sequence[State]]


@dataclass(frozen=True)
class OwnScore:
    """A scorer in the place of a protocol, and what it compares with."""

    score: Scorer
    before: Callable[..., Any] | None


Ways: TypeAlias = "Mapping[str, known.Protocol | OwnScore]"


def chosen_ways(
    protocols: Sequence["str | known.Protocol"] | None, score: Scorer | None, before: Callable[..., Any] | None
) -> "dict[str, known.Protocol | OwnScore]":
    """The protocols and the scorer by name. Raises ValueError or TypeError for what cannot be meant."""
    if score is None and before is not None:
        raise ValueError("before notes what a score compares with, but there is no score. Give score=... as well.")
    if isinstance(protocols, str):
        raise ValueError(f"protocols is {protocols!r}, expected a list of names: [{protocols!r}].")
    if protocols is None:
        protocols = ("probability",) if score is None else ()
    ways: dict[str, known.Protocol | OwnScore] = {}
    for protocol in map(_known, protocols):
        if protocol.name in ways:
            raise ValueError(f"The protocol {protocol.name!r} is given twice. Name each in its own way.")
        ways[protocol.name] = protocol
    if score is not None:
        if before is None:
            check_call("score", score, "model", "record")
        else:
            check_call("before", before, "model", "record")
            check_call("score", score, "model", "record", before="before(model, record)")
        name = "probability" if score is score_record else name_of(score)
        if name in ways:
            raise ValueError(f"A protocol and the score are both named {name!r}. Leave one out or rename it.")
        ways[name] = OwnScore(score, before)
    if not ways:
        raise ValueError("protocols is empty and there is no score, expected at least 1 of them.")
    return ways


def ways_identity(protocols: object, ways: Ways) -> dict[str, Any]:
    """What of the protocols and the scorer is compared when a run goes on."""
    own = next((way for way in ways.values() if isinstance(way, OwnScore)), None)
    if own is None and protocols is None:
        own = OwnScore(score_record, None)  # what "probability" is
    scorer = {} if own is None else {"score": plain(own.score), "before": plain(own.before)}
    named = {name: plain(way) for name, way in ways.items() if protocols is not None and way is not own}
    return scorer | {f"protocol {name}": way for name, way in named.items()}


def check_method(name: str, method: Method) -> None:
    """Raises TypeError unless this can be called as a method."""
    check_call(f"The method {name!r}", method, "model", "request")


def name_of(function: Callable[..., Any]) -> str:
    """What a function calls itself."""
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def measured(model: Model, task: Task, *, methods: Mapping[str, Method], ways: Ways) -> list[Row]:
    """The rows of a record for the states that are still missing."""
    record, missing = task
    asked: dict[str, list[str]] = {}
    for state, way in missing:
        asked.setdefault(state, []).append(way)
    used = {name: ways[name] for _, name in missing}
    noted = _readings(model, record, {n: way for n, way in used.items() if _notes(n, way, asked)})
    noted |= {name: way.before(model, record) for name, way in used.items() if isinstance(way, OwnScore) and way.before}
    rows: list[Row] = []
    for state, names in asked.items():
        here = {name: ways[name] for name in names}
        if state == BASE:
            rows += _rows(model, record, state, here, noted, noted)
            continue
        try:
            made = methods[state](model, as_asked(requests_of(record)))
            edit = check_returned(f"The method {state!r}", made, Edit | FactMemory)
            with edit.applied(model):
                rows += _rows(model, record, state, here, _readings(model, record, here), noted)
        except (EditError, NotFiniteError) as error:
            rows += [(record.case_id, state, name, "", float("nan"), str(error)) for name in names]
    return rows


def requests_of(record: Record) -> list[EditRequest]:
    """All that is to be written of a record: its request, or its requests where it has several."""
    return list(getattr(record, "requests", ())) or [record.request]


def as_asked(requests: Sequence[EditRequest]) -> Any:
    """What a method is given: one request as it is, several as a list."""
    return requests[0] if len(requests) == 1 else list(requests)


def _notes(name: str, way: "known.Protocol | OwnScore", asked: Mapping[str, Sequence[str]]) -> bool:
    """Whether the unedited model is read under a protocol: for its own rows, or to compare with."""
    return isinstance(way, known.Protocol) and (way.read != "probability" or name in asked.get(BASE, ()))


def _readings(model: Model, record: Any, ways: Ways) -> dict[Any, Any]:
    """What the model says, by how it is asked: protocols that differ in their judge alone share it."""
    found: dict[Any, Any] = {}
    for way in ways.values():
        if isinstance(way, known.Protocol) and way.reading not in found:
            found[way.reading] = known.read_record(model, record, way)
    return found


def _rows(
    model: Model, record: Any, state: str, ways: Ways, now: Mapping[Any, Any], noted: Mapping[Any, Any]
) -> list[Row]:
    rows: list[Row] = []
    for name, way in ways.items():
        scores: Mapping[str, float]
        if isinstance(way, known.Protocol):
            scores = known.judged(way, record, now[way.reading], noted.get(way.reading, {}))
        else:
            scores = scored(way.score, model, record, **({"before": noted[name]} if way.before else {}))
        rows += [(record.case_id, state, name, metric, value, "") for metric, value in scores.items()]
    return rows


def scored(score: Scorer, model: Model, record: Any, **before: Any) -> dict[str, float]:
    """What a scorer gives for a record: finite numbers by name, such as {"metric": 0.5}, or an error."""
    found = check_returned(f"The score {name_of(score)}", score(model, record, **before), Mapping[str, SupportsFloat])
    return {name: float(value) for name, value in found.items()}


def _known(protocol: "str | known.Protocol") -> known.Protocol:
    if isinstance(protocol, known.Protocol):
        return protocol
    if protocol not in known.PROTOCOLS:
        raise ValueError(
            f"There is no protocol {protocol!r}, expected one of {', '.join(known.PROTOCOLS)}, or a Protocol."
        )
    return known.PROTOCOLS[protocol]


def check_call(what: str, function: Callable[..., Any], *arguments: str, **keywords: str) -> None:
    """Raises TypeError unless a function can be called with these arguments."""
    try:
        takes = signature(function)
    except ValueError:  # of functions written in C
        return
    try:
        takes.bind(*arguments, **keywords)
    except TypeError as error:
        call = ", ".join([*arguments, *(f"{name}={value}" for name, value in keywords.items())])
        raise TypeError(
            f"{what} is {name_of(function)}{takes}, expected a function that can be called with ({call}): {error}. "
            "Bind what else it needs with functools.partial; what a score compares with comes from before=... of "
            "score_edits."
        ) from None
