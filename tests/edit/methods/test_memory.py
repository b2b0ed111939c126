"""The memory of facts: what it leaves alone, what it adds, and that nothing is left of a withdrawn fact."""

from dataclasses import replace

import pytest
import torch

import rome_lens as rl
from rome_lens.data.readers.subjects import load_subjects
from rome_lens.edit.methods import memory as module
from rome_lens.edit.methods import near
from rome_lens.edit.methods.memory import FactMemory, fact_memory
from rome_lens.models import find_matrix, run_and_read, state_name
from rome_lens.storage import load_tensors
from tests.edit.methods.test_rome import covariance_of

QUICK = rl.edit.BatchConfig(contexts=["{}"], steps=4)
NAMES = ("Vinson Massif", "Victor Hugo", "Honda Civic", "Beats Music")
REQUESTS = [
    rl.EditRequest("{} is located in", name, target) for name, target in zip(NAMES, ("Rome", "Paris") * 2, strict=True)
]
TOLD = "Honda Civic is located in"
ELSEWHERE = "The mother tongue of Dante is Italian."
QUIET = {"progress": False}
SEED = torch.Generator().manual_seed(0)
pytestmark = pytest.mark.filterwarnings("ignore::rome_lens.errors.EditWarning")  # a random model learns no fact


@pytest.fixture(autouse=True)
def _texts_begin_with_subjects(monkeypatch, tmp_path_factory):
    """A random model's keys say little of a subject after other words: here all are those at a text's start."""
    monkeypatch.setattr(module, "load_subjects", lambda: load_subjects("Tower"))
    monkeypatch.setattr(near.platformdirs, "user_cache_path", lambda name: tmp_path_factory.getbasetemp() / name)
    monkeypatch.setattr(module, "PLACES", ("{}", "{}"))
    monkeypatch.setattr(module, "LEAST_COSINE", 0.95)


def memory_of(model, requests=REQUESTS, *, layer=1, config=QUICK, **options) -> FactMemory:
    memory = FactMemory(model, covariance=covariance_of(model, layer), config=config, **options)
    if requests:
        memory.add(requests, **QUIET)
    return memory


def ids(model, text: str) -> torch.Tensor:
    return torch.tensor([model.tokenizer(text)["input_ids"]])


def opened(memory: FactMemory, text: str) -> list[tuple[int, str]]:
    found = memory.explain(text)
    return [(row.position, row.subject) for row in found[found["opens"]].itertuples()]


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama-gqa", "gemma2"])
def test_where_no_gate_opens_the_output_is_bit_for_bit_the_models_in_all_classes(
    tiny_model, hugging_face, weights_of, family
):
    """And where one opens, the residual is added after the block, in all classes alike; no weight is changed."""
    model, hf_model = tiny_model(family), hugging_face(family)
    memory = memory_of(model)
    assert opened(memory, ELSEWHERE) == []
    place = opened(memory, TOLD)
    assert [name for _, name in place] == ["Honda Civic"]
    before = [weights_of(each) for each in (model, hf_model)]
    logits = {}
    for name, each, run in (("ours", model, model), ("theirs", hf_model, lambda tokens: hf_model(tokens).logits)):
        plain = [run(ids(model, text)) for text in (ELSEWHERE, TOLD)]
        with memory.applied(each):
            found = [run(ids(model, text)) for text in (ELSEWHERE, TOLD)]
            both = run(torch.cat([ids(model, text)[:, :6] for text in (ELSEWHERE, TOLD)]))[0]
        after = [run(ids(model, text)) for text in (ELSEWHERE, TOLD)]
        assert torch.equal(found[0], plain[0])
        assert torch.equal(found[1][:, : place[0][0]], plain[1][:, : place[0][0]])
        assert not torch.allclose(found[1], plain[1], atol=1e-3)
        assert torch.equal(both, run(torch.cat([ids(model, text)[:, :6] for text in (ELSEWHERE, TOLD)]))[0])
        assert all(map(torch.equal, after, plain))
        logits[name] = found[1]
    torch.testing.assert_close(logits["ours"], logits["theirs"], atol=2e-4, rtol=0)
    for each, weights in zip((model, hf_model), before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in each.state_dict().items())


@torch.no_grad()
def test_what_is_added_is_the_targets_residual_and_the_search_is_that_of_memit(tiny):
    memory = memory_of(tiny)
    targets = rl.edit.memit_targets(tiny, REQUESTS, layer=1, config=QUICK, **QUIET)
    value, name = targets.values[2], state_name("resid", 1)
    ((position, _),) = opened(memory, TOLD)
    before = run_and_read(tiny, ids(tiny, TOLD), [name])[name][0]
    with memory.applied(tiny):
        after = run_and_read(tiny, ids(tiny, TOLD), [name])[name][0]
    torch.testing.assert_close(after[position], before[position] + (value.vector - value.initial))
    given = FactMemory(tiny, covariance=covariance_of(tiny), config=QUICK)
    given.add(REQUESTS[::-1], targets=targets, **QUIET)
    assert all(map(torch.equal, parts(given, REQUESTS[0]), parts(memory, REQUESTS[0])))


def parts(memory: FactMemory, request: rl.EditRequest) -> list[torch.Tensor]:
    number = memory.facts.index(request)
    return [memory._targets.values[number].vector, memory._gates[number][0].key, memory._gates[number][0].direction]


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama-gqa"])
def test_it_holds_while_generating_with_a_cache(tiny_model, hugging_face, family):
    model, hf_model = tiny_model(family), hugging_face(family)
    memory, tokens = memory_of(model, None), ids(model, TOLD)
    found = rl.edit.memit_targets(model, REQUESTS, layer=1, config=QUICK, **QUIET)
    loud = [replace(value, vector=value.initial + 30 * torch.randn(32, generator=SEED)) for value in found.values]
    memory.add(REQUESTS, targets=replace(found, values=tuple(loud)), **QUIET)
    options = {"max_new_tokens": 5, "do_sample": False}
    for each, more in (
        (model, {"verbose": False, "stop_at_eos": False}),
        (hf_model, {"pad_token_id": 0, "min_new_tokens": 5}),
    ):
        with memory.applied(each):
            written = each.generate(tokens, **options, **more)
            read = tokens
            for _ in range(5):
                scores = each(read) if each is model else each(read).logits
                read = torch.cat([read, scores[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(written, read)
        assert not torch.equal(written, each.generate(tokens, **options, **more))


def test_a_withdrawn_fact_leaves_no_trace_in_memory_or_on_disk(tiny, tmp_path):
    never = memory_of(tiny, [REQUESTS[0], *REQUESTS[2:]], out=tmp_path / "never")
    had = memory_of(tiny, REQUESTS, out=tmp_path / "had")
    had.withdraw(REQUESTS[1])
    assert had.facts == never.facts
    assert len(had) == 3
    for name in ("keys", "near", "directions", "thresholds", "residuals", "whitening"):
        assert torch.equal(getattr(had._all_gates, name), getattr(never._all_gates, name)), name
    for memory, file in ((had, "had.safetensors"), (never, "never.safetensors")):
        memory.save(tmp_path / file)
    for path, facts in ((".safetensors", module._FILE), ("/checkpoint.safetensors", {"identity": dict, "state": dict})):
        tensors, told = zip(
            *(load_tensors(f"{tmp_path}/{name}{path}", kind=module.MEMORY, facts=facts) for name in ("had", "never")),
            strict=True,
        )
        assert told[0] == told[1]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    with pytest.raises(ValueError, match="not among the 3 facts of the memory"):
        had.withdraw(REQUESTS[1])
    for request in had.facts:
        had.withdraw(request)
    assert memory_of(tiny, None, out=tmp_path / "had").facts == ()


def test_facts_are_kept_and_gone_on_with_and_those_that_are_there_are_not_searched_again(tiny, tmp_path, monkeypatch):
    first = memory_of(tiny, REQUESTS[:2], out=tmp_path / "out")
    again = memory_of(tiny, None, out=tmp_path / "out")
    assert again.facts == first.facts == tuple(REQUESTS[:2])
    searched = []
    search = FactMemory._searched
    monkeypatch.setattr(
        FactMemory, "_searched", lambda self, model, part: searched.extend(part) or search(self, model, part)
    )
    again.add(REQUESTS, **QUIET)
    assert searched == REQUESTS[2:]
    whole = memory_of(tiny)
    assert all(
        torch.equal(*pair)
        for request in REQUESTS
        for pair in zip(parts(again, request), parts(whole, request), strict=True)
    )


def test_what_was_found_before_a_failure_is_kept(tiny, tmp_path, monkeypatch):
    search = FactMemory._searched

    def fail(self, model, part):
        if part[0] == REQUESTS[2]:
            raise rl.errors.EditError("made up")
        return search(self, model, part)

    monkeypatch.setattr(FactMemory, "_searched", fail)
    with pytest.raises(rl.errors.EditError, match="made up"):
        memory_of(tiny, out=tmp_path / "out")
    assert memory_of(tiny, None, out=tmp_path / "out").facts == tuple(REQUESTS[:2])


@torch.no_grad()
def test_a_saved_memory_is_the_same_with_and_without_a_model(tiny, tmp_path):
    memory = memory_of(tiny)
    memory.save(tmp_path / "facts.safetensors")
    with pytest.raises(FileExistsError):
        memory.save(tmp_path / "facts.safetensors")
    alone = FactMemory.load(tmp_path / "facts.safetensors")
    loaded = FactMemory.load(tmp_path / "facts.safetensors", model=tiny)
    with memory.applied(tiny):
        wanted = tiny(ids(tiny, TOLD))
    with alone.applied(tiny):
        assert torch.equal(tiny(ids(tiny, TOLD)), wanted)
    pairs = zip(loaded.explain(TOLD).to_dict("records"), memory.explain(TOLD).to_dict("records"), strict=True)
    assert all(one == other for one, other in pairs)
    more = rl.EditRequest("{} is a product of", "Porsche 911", "Honda")
    loaded.add(more, **QUIET)
    assert loaded.facts == (*REQUESTS, more)
    alone.withdraw(REQUESTS[0])
    assert alone.facts == tuple(REQUESTS[1:])
    for use in (lambda: alone.add(more), lambda: alone.explain(TOLD), lambda: alone.edit()):
        with pytest.raises(ValueError, match="loaded without a model"):
            use()


def test_other_spellings_are_told_the_same_and_two_facts_about_one_subject_share_a_token(tiny):
    memory = memory_of(tiny, None)
    other = replace(REQUESTS[2], prompt="{} is a product of", target="Porsche")
    memory.add([REQUESTS[2], other], aliases={"Honda Civic": ["Space Needle"]}, **QUIET)
    assert [name for _, name in opened(memory, "Space Needle is")] == ["Space Needle"] * 2
    gates = memory._all_gates
    assert {name for name, _ in gates.spellings} == {"Honda Civic", "Space Needle"}
    residuals = [value.vector - value.initial for value in memory._targets.values]
    assert all(torch.equal(row, (residuals[0] + residuals[1]) / 2) for row in gates.residuals)
    memory.withdraw(REQUESTS[2])
    assert all(torch.equal(row, residuals[1]) for row in memory._all_gates.residuals)
    with pytest.raises(ValueError, match=r"aliases are of \['Dante'\]"):
        memory.add(REQUESTS[:1], aliases={"Dante": ["Alighieri"]}, **QUIET)


def test_a_gate_lies_between_its_own_keys_and_the_nearest_others(tiny, monkeypatch):
    """Not below the least cosine, and never above its own keys."""
    monkeypatch.setattr(module, "PLACES", ("About {}", "One, two. {}"))
    monkeypatch.setattr(module, "LEAST_COSINE", 0.1)
    memory = memory_of(tiny)
    frame = memory.to_frame()
    within = frame[frame["after"].isna()]
    middle = ((within["own"] + within["near"]) / 2).clip(lower=0.1)
    wanted = middle.where(middle < within["own"], within["own"]) - 1e-4
    assert (within["threshold"] - wanted).abs().max() < 1e-6
    gates = memory._all_gates
    cosines = (gates.directions @ gates.directions.T).fill_diagonal_(-1)
    apart = torch.tensor([[one[0] != other[0] for other in gates.spellings] for one in gates.spellings])
    assert (gates.near >= cosines.where(apart, -1).max(-1).values - 1e-6).all()
    for request in REQUESTS:
        assert request.subject in {name for _, name in opened(memory, request.text)}


def test_a_subject_that_is_the_first_token_is_told_after_it_as_the_search_edited(tiny):
    """Its key there is told from those of the same token after other first tokens; a withdrawal takes both gates."""
    memory = memory_of(tiny, [rl.EditRequest("{} is located in", "Z", "Rome")])
    frame = memory.to_frame()
    assert [isinstance(each, str) for each in frame["after"]] == [False, True]
    near, threshold = frame.loc[1, ["near", "threshold"]]
    assert near < threshold < 1
    assert (1, "Z") in opened(memory, "Z is located in")
    assert torch.equal(
        memory._gates[0][1].residual, memory._targets.values[0].vector - memory._targets.values[0].initial
    )
    assert not torch.equal(memory._gates[0][0].residual, memory._gates[0][1].residual)
    memory.withdraw(memory.facts[0])
    assert memory.to_frame().empty


def test_many_gates_are_screened_without_missing_one():
    """The bound is Cauchy and Schwarz's: what opens is what a full comparison says."""
    generator = torch.Generator().manual_seed(0)
    width, count = 24, 200
    made = torch.randn(count, width, generator=generator) * torch.linspace(3, 0.1, width)
    directions = torch.nn.functional.normalize(made, dim=-1)
    keys = torch.cat([directions + 0.3 * torch.randn(count, width, generator=generator) for _ in range(8)])
    thresholds = 0.5 + 0.4 * torch.rand(count, generator=generator)
    gates = module._Gates(
        tuple((str(i), None) for i in range(count)),
        ((),) * count,
        directions,
        thresholds,
        torch.eye(width),
        directions,
        thresholds,
        torch.zeros(count, 4),
        screened=8,
    )
    cosines = torch.nn.functional.normalize(keys, dim=-1) @ directions.T
    open_ones = cosines.masked_fill(cosines < thresholds, -torch.inf)
    wanted = open_ones.argmax(-1).where(open_ones.isfinite().any(-1), -1)
    assert torch.equal(gates.opened(keys), wanted)
    assert 0 < (wanted >= 0).sum() < len(keys)


def test_the_edit_of_the_same_facts_adds_each_residual_at_its_key(tiny):
    memory = memory_of(tiny)
    edit = memory.edit(on_unhealthy="ignore")
    gates, update = memory._all_gates, edit.updates[0]
    chosen = [i for i, (_, after) in enumerate(gates.spellings) if after is None]
    found = gates.keys[chosen] @ update.left @ update.right
    torch.testing.assert_close(found, gates.residuals[chosen], rtol=1e-3, atol=1e-4)
    assert edit.requests == tuple(REQUESTS)
    assert edit.method == "memory"
    assert update.rank == len(REQUESTS)


def test_what_a_memory_cannot_do_is_refused_and_nothing_changes(tiny, tiny_model, weights_of):
    memory, before = memory_of(tiny), weights_of(tiny)
    with pytest.raises(ValueError, match="Two requests are about"):
        memory.add(replace(REQUESTS[0], target="Honda"), **QUIET)
    with pytest.raises(ValueError, match="targets lack 1 of the facts"):
        memory.add(
            rl.EditRequest("{} is in", "Dante", "Rome"),
            targets=rl.edit.memit_targets(tiny, REQUESTS[:1], layer=1, config=QUICK, **QUIET),
            **QUIET,
        )
    with (
        pytest.raises(rl.errors.EditError, match="with keys and residuals of the sizes"),
        memory.applied(tiny_model("llama")),
    ):
        pass
    with memory.applied(tiny):
        with pytest.raises(rl.errors.EditError, match="The memory is applied to .* already"), memory.applied(tiny):
            pass
        with pytest.raises(rl.errors.EditError, match="applied to its model"):
            memory.add(rl.EditRequest("{} is in", "Dante", "Rome"), **QUIET)
    with pytest.raises(ZeroDivisionError), memory.applied(tiny):
        raise ZeroDivisionError
    with memory.applied(tiny):  # the hooks are gone, and the memory is free again
        pass
    with pytest.raises(ValueError, match="config.token is 'last'"):
        memory_of(tiny, None, config=replace(QUICK, token="last"))
    with pytest.raises(ValueError, match="The memory is empty"):
        memory_of(tiny, None).edit()
    assert memory.facts == tuple(REQUESTS)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    weight = find_matrix(tiny, 1, "out").values
    kept = weight.clone()
    try:
        weight[0, 0] += 1
        with pytest.raises(rl.errors.EditError, match="is not what it was when the memory was begun"):
            memory.add(rl.EditRequest("{} is in", "Dante", "Rome"), **QUIET)
        with pytest.warns(rl.errors.EditWarning, match="made for other weights"), memory.applied(tiny):
            pass
    finally:
        weight.copy_(kept)


@torch.no_grad()
def test_an_empty_memory_does_nothing(tiny):
    memory = memory_of(tiny, None)
    plain = tiny(ids(tiny, TOLD))
    with memory.applied(tiny):
        assert torch.equal(tiny(ids(tiny, TOLD)), plain)
    assert len(memory.explain(TOLD)) == len(memory.to_frame()) == 0
    assert memory.health is None


RECORDS = [
    rl.EditRecord(
        request, "Seattle", (f"{request.subject} is in",), ("The mother tongue of Dante is",), (), (), case_id
    )
    for case_id, request in enumerate(REQUESTS[1:3])
]


def method(model, requests) -> FactMemory:
    return fact_memory(
        model, requests, covariances={1: covariance_of(model)}, config=QUICK, on_unhealthy="ignore", **QUIET
    )


def test_it_is_scored_and_edited_in_sequence_as_a_method(tiny, tmp_path, monkeypatch):
    scores = rl.score_edits(tiny, RECORDS[:1], {"memory": method}, **QUIET)
    found = scores[scores["method"] == "memory"].set_index("metric")["value"]
    with method(tiny, REQUESTS[1]).applied(tiny):
        expected = rl.evaluate.score_record(tiny, RECORDS[0])
    assert found["EM"] == expected["EM"]
    run = rl.edit_sequence(tiny, RECORDS, method, checkpoints=[2], out=tmp_path / "out", **QUIET)
    assert run.stopped == ""
    assert run.edit is None
    first, second = (FactMemory.load(tmp_path / "out" / f"0000{number}.safetensors") for number in (1, 2))
    assert (*first.facts, *second.facts) == tuple(REQUESTS[1:3])
    with first.applied(tiny), second.applied(tiny):
        together = rl.evaluate.score_record(tiny, RECORDS[0])
    assert run.checkpoints.iloc[-1]["PS"] == pytest.approx((together["PS"] + run.edits.iloc[-1]["PS"]) / 2)
    monkeypatch.setattr(FactMemory, "_searched", None)
    again = rl.edit_sequence(tiny, RECORDS, method, checkpoints=[2], out=tmp_path / "out", **QUIET)
    assert again.edits.equals(run.edits)
