"""RippleEdits: what follows from an edit, and what does not (Cohen et al. 2023, arXiv 2307.12976)."""

from collections.abc import Iterable, Mapping
from statistics import fmean

from rome_lens.checking import checked
from rome_lens.data.cases import RippleQuery, RippleRecord
from rome_lens.evaluate.answers import generate_answers
from rome_lens.models import Model

_NEW_TOKENS = 30


@checked
def ripple_conditions(model: Model, record: RippleRecord) -> dict[str, list[bool]]:
    """For each axis, which tests are run: those all of whose condition queries the model answers.

    Of the model before the edit, this is what `score_ripple` takes as `before`.
    """
    queries = {query for tests in record.tests.values() for test in tests for query in test.before}
    known = _answered(model, queries)
    return {axis: [all(known[q] for q in test.before) for test in tests] for axis, tests in record.tests.items()}


@checked
def score_ripple(model: Model, record: RippleRecord, *, before: Mapping[str, list[bool]]) -> dict[str, float]:
    """The scores of a RippleEdits record on the model as it is, from 0 to 1.

    - AXIS (Logical_Generalization, ...): share of the tests that pass, of those that are run; left out where none is.
    - ripple: the mean over the record's axes.
    - executed: share of all tests that are run.

    A test passes if one (OR) or all (AND) of its queries are answered: each of a query's answers, by its name or an
    alias, stands in what the model writes within 30 tokens (no stops; case counts, as in the authors' code).

    Args:
        before: `ripple_conditions` of the model before the edit.
    """
    run = {
        axis: [test for test, wanted in zip(tests, before[axis], strict=True) if wanted]
        for axis, tests in record.tests.items()
    }
    answered = _answered(model, {query for tests in run.values() for test in tests for query in test.queries})
    scores = {
        axis: fmean(
            (all if test.condition == "AND" else any)(answered[query] for query in test.queries) for test in tests
        )
        for axis, tests in run.items()
        if tests
    }
    if scores:
        scores["ripple"] = fmean(scores.values())
    total = sum(map(len, record.tests.values()))
    return scores | ({"executed": sum(map(len, run.values())) / total} if total else {})


def _answered(model: Model, queries: Iterable[RippleQuery]) -> dict[RippleQuery, bool]:
    """Whether what the model writes holds each of a query's answers."""
    asked = sorted(queries, key=lambda query: query.prompt)
    if not asked:
        return {}
    written = generate_answers(model, [query.prompt for query in asked], new_tokens=_NEW_TOKENS, stops=())
    return {
        query: all(any(name in answer.text for name in names) for names in query.answers)
        for query, answer in zip(asked, written, strict=True)
    }
