"""Sequences in batches, by methods that remember their earlier batches."""

from itertools import product

import pandas as pd
import pytest
import torch

import rome_lens as rl
from rome_lens.evaluate import sequence as sequence_module
from rome_lens.models import find_matrix
from tests.edit.artifact.test_edit import same
from tests.evaluate.test_sequence import CASES, RECORDS

PROMPT = "The mother tongue of {} is"
FIVE = [
    *RECORDS,
    *(rl.EditRecord(rl.EditRequest(PROMPT, f"{s} II", t), o, case_id=i + 3) for i, (s, t, o) in enumerate(CASES[:2])),
]
CONFIG = rl.edit.UltraEditConfig(layers={"in": [0, 2], "out": [0, 2]}, learning_rate=1e-4)
OPTIONS = {"batch": 2, "checkpoints": [1, 4], "progress": False}


def remembering(model, requests, *, memory) -> rl.Edit:
    return rl.edit.ultraedit(model, requests, config=CONFIG, memory=memory, on_unhealthy="ignore", progress=False)


def test_batches_go_on_with_one_memory_and_all_edits_are_one(tiny, weights_of, tmp_path):
    """Against a plain loop: each batch on the model as edited so far, with the memory of those before it."""
    before, memory, handles = weights_of(tiny), rl.edit.EditMemory(), []
    originals = {place: find_matrix(tiny, *place).values.clone() for place in product((0, 2), ("in", "out"))}
    run = rl.edit_sequence(tiny, FIVE, remembering, out=tmp_path, **OPTIONS)
    assert same(tiny, before)
    assert list(run.edits["edit"]) == [1, 2, 3, 4, 5]
    assert list(run.checkpoints["edits"]) == [0, 2, 4, 5]
    for number, start in enumerate((0, 2, 4), start=1):
        edit = remembering(tiny, [record.request for record in FIVE[start : start + 2]], memory=memory)
        kept = rl.Edit.load(tmp_path / f"{number:05}.safetensors")
        assert all(torch.equal(a.right, b.right) for a, b in zip(edit.updates, kept.updates, strict=True))
        handles.append(edit.apply(tiny))
        row = run.edits.iloc[min(start + 1, 4)]
        assert row["EM"] == rl.evaluate.score_record(tiny, FIVE[min(start + 1, 4)])["EM"]
        grown = max(
            ((find_matrix(tiny, *place).values - original).norm() / original.norm()).item()
            for place, original in originals.items()
        )
        assert row["norm_growth"] == pytest.approx(grown, rel=1e-5)
    edited = weights_of(tiny)
    for handle in handles:
        handle.revert()
    assert run.edit.requests == tuple(record.request for record in FIVE)
    with run.edit.applied(tiny):
        for name, value in tiny.state_dict().items():
            torch.testing.assert_close(value, edited[name], atol=1e-6, rtol=1e-5)
    run.edit.save(tmp_path.parent / "whole.safetensors")
    assert [u.matrix for u in rl.Edit.load(tmp_path.parent / "whole.safetensors").updates] == ["in", "out"] * 2
    assert same(tiny, before)


@pytest.mark.parametrize("moment", ["before the edit", "after the memory"])
def test_a_broken_sequence_goes_on_with_its_memory(tiny, tmp_path, moment, monkeypatch):
    """Broken off in the second batch, before or after its memory was written: it ends as an unbroken one does."""
    whole = rl.edit_sequence(tiny, FIVE, remembering, out=tmp_path / "whole", **OPTIONS)

    def breaking(*arguments, **options):
        if len(list((tmp_path / "broken").glob("0*.safetensors"))) == 1:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    place = (rl.Edit, "save") if moment == "after the memory" else (rl.edit.EditMemory, "save")
    original = getattr(*place)
    with monkeypatch.context() as patch:
        patch.setattr(*place, breaking)
        with pytest.raises(KeyboardInterrupt):
            rl.edit_sequence(tiny, FIVE, remembering, out=tmp_path / "broken", **OPTIONS)
    again = rl.edit_sequence(tiny, FIVE, remembering, out=tmp_path / "broken", **OPTIONS)
    pd.testing.assert_frame_equal(again.edits, whole.edits)
    pd.testing.assert_frame_equal(again.checkpoints, whole.checkpoints)
    monkeypatch.setattr(sequence_module, "score_record", lambda *_: pytest.fail("scored twice"))
    assert [path.name for path in (tmp_path / "broken").glob("memory*")] == ["memory-00003.safetensors"]


def test_a_sequence_begun_otherwise_is_refused(tiny, weights_of, tmp_path):
    before = weights_of(tiny)
    rl.edit_sequence(tiny, FIVE[:2], remembering, out=tmp_path, **OPTIONS)
    with pytest.raises(rl.errors.FormatError, match="begun with {'batch': 2}, but {'batch': 3}"):
        rl.edit_sequence(tiny, FIVE, remembering, out=tmp_path, **(OPTIONS | {"batch": 3}))
    with pytest.raises(rl.errors.FormatError, match="begun with {'method"):
        rl.edit_sequence(tiny, FIVE, rl.edit.ultraedit, out=tmp_path, **OPTIONS)
    assert same(tiny, before)


def test_contradictions_in_a_batch_are_refused_before_any_work(tiny, tmp_path):
    clash = rl.EditRecord(rl.EditRequest(*[RECORDS[0].request.prompt, RECORDS[0].request.subject, "Seattle"]), "Paris")
    with pytest.raises(ValueError, match="Two requests are about"):
        rl.edit_sequence(tiny, [*FIVE[1:3], FIVE[0], clash], remembering, out=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="batch is 0"):
        rl.edit_sequence(tiny, FIVE, remembering, out=tmp_path, **(OPTIONS | {"batch": 0}))
    assert not any(tmp_path.iterdir())


def test_questions_are_scored_as_questions_and_by_what_is_given(tiny):
    locality = {"other": (rl.data.Continuation("Dante is", "Italian"),)}
    questions = [
        rl.data.QuestionRecord(record.request, ("Where is it?",), {}, locality, record.case_id) for record in FIVE
    ]
    run = rl.edit_sequence(tiny, questions, remembering, **OPTIONS)
    assert {"efficacy", "paraphrase", "specificity"} <= set(run.checkpoints)
    assert run.checkpoints["n"].tolist() == [5, 2, 4, 5]
    mine = rl.edit_sequence(tiny, questions, remembering, score=lambda model, record: {"mine": 0.5}, **OPTIONS)
    assert set(mine.checkpoints["mine"]) == {0.5}


def test_all_requests_of_a_record_are_written(tiny):
    """As `score_edits` does it: together, in a list."""
    facts = tuple(record.request for record in FIVE[:2])
    record = rl.data.MultiHopRecord(facts, (rl.data.Question("Where is it?", "Rome"),))
    given = []

    def method(model, requests):
        given.append(requests)
        return rl.edit.ultraedit(model, requests, config=CONFIG, on_unhealthy="ignore", progress=False)

    run = rl.edit_sequence(tiny, [record], method, score=lambda model, record: {}, progress=False)
    assert given == [list(facts)]
    assert run.edit.requests == facts
