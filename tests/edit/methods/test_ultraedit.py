"""UltraEdit: against a plain loop written from its equations, over turns, for every matrix."""

import pytest
import torch

import rome_lens as rl
from analyses.plain.ultraedit import plain_ultraedit
from rome_lens.edit.methods.batch import EditMemory
from rome_lens.edit.methods.ultraedit import UltraEditConfig, ultraedit
from rome_lens.models import find_matrix
from rome_lens.models.tokens import tokenize_continuation
from tests.edit.artifact.test_edit import same

CITY = "{} is located in the city of"
REQUESTS = [
    rl.EditRequest(CITY, "The Eiffel Tower", target="Rome and Seattle"),
    rl.EditRequest(CITY, "The Colosseum", target="Paris"),
    rl.EditRequest("The mother tongue of {} is", "Dante", target="French"),
    rl.EditRequest("{} is owned by", "Beats Music", target="Porsche and Honda"),
    rl.EditRequest("{} is a product of", "Honda Civic", target="Apple"),
]
CONFIG = {"layers": {"out": [0, 2]}, "learning_rate": 1e-3, "requests_per_pass": 2}


def one_token(model) -> rl.EditRequest:
    """A request whose target is one token."""
    texts = {request: tokenize_continuation(model, request.text, request.target) for request in REQUESTS}
    return next(request for request, (text, start) in texts.items() if len(text.ids) == start + 1)


@pytest.mark.parametrize(
    ("family", "matrices"), [("gpt2", ("in", "out")), ("gptj", ("out",)), ("llama-gqa", ("in", "gate", "out"))]
)
def test_two_turns_equal_a_plain_loop_over_the_equations(tiny_model, hugging_face, weights_of, family, matrices):
    """The second turn goes on with the statistics of the first, on the model with its edit; to 1e-3 of the norm."""
    model, hf_model = tiny_model(family), hugging_face(family)
    before = weights_of(model)
    layers = {matrix: [0, 2] for matrix in matrices}
    config, memory = UltraEditConfig(**(CONFIG | {"layers": layers})), EditMemory()
    turns = [REQUESTS[:3], REQUESTS[3:]]
    modules = {(layer, matrix): find_matrix(hf_model, layer, matrix).module for layer in (0, 2) for matrix in matrices}
    texts = [tokenize_continuation(model, request.text, request.target) for request in REQUESTS]
    rows = [(list(text.ids), start) for text, start in texts]
    expected = plain_ultraedit(hf_model, list(modules.values()), [[rows[:2], rows[2:3]], [rows[3:]]], 1e-3)
    handles = []
    for turn, changes in zip(turns, expected, strict=True):
        edit = ultraedit(model, turn, config=config, memory=memory, on_unhealthy="ignore", progress=False)
        assert same(model, before) == (not handles)
        for update in edit.updates:
            change = changes[modules[update.layer, update.matrix]]
            assert (update.left @ update.right - change).norm() < 1e-3 * change.norm()
        handles.append(edit.apply(model))
    for handle in handles:
        handle.revert()
    assert same(model, before)


def test_a_turn_lowers_the_loss_and_forgets_nothing_between_independent_edits(tiny):
    config = UltraEditConfig(**(CONFIG | {"learning_rate": 1e-5}))
    first = ultraedit(tiny, REQUESTS, config=config, on_unhealthy="ignore", progress=False)
    again = ultraedit(tiny, REQUESTS, config=config, on_unhealthy="ignore", progress=False)
    assert torch.equal(first.updates[0].right, again.updates[0].right)
    before = [rl.evaluate.score_record(tiny, rl.EditRecord(request, "One"))["EM"] for request in REQUESTS]
    with first.applied(tiny):
        after = [rl.evaluate.score_record(tiny, rl.EditRecord(request, "One"))["EM"] for request in REQUESTS]
    assert sum(after) > sum(before)


def test_the_rank_is_at_most_the_matrixs(tiny):
    many = [rl.EditRequest(CITY, f"Tower {i}", target="Rome and Seattle") for i in range(20)]
    config = UltraEditConfig(**CONFIG)
    edit = ultraedit(tiny, many, config=config, on_unhealthy="ignore", progress=False)
    assert {update.rank for update in edit.updates} == {32}


def test_bad_input_is_told_and_changes_neither_model_nor_memory(tiny, weights_of):
    before, memory = weights_of(tiny), EditMemory()
    config = UltraEditConfig(**CONFIG)
    ultraedit(tiny, REQUESTS[:2], config=config, memory=memory, on_unhealthy="ignore", progress=False)
    kept = {name: value.clone() for name, value in memory.tensors.items()}
    with pytest.raises(ValueError, match="begun by ultraedit, .*other: learning_rate"):
        ultraedit(tiny, REQUESTS, config=UltraEditConfig(**(CONFIG | {"learning_rate": 1.0})), memory=memory)
    with pytest.raises(ValueError, match="Two requests are about"):
        ultraedit(tiny, [REQUESTS[1], rl.EditRequest(CITY, "The Colosseum", target="Seattle")], memory=memory)
    with pytest.raises(ValueError, match="has no single matrix 'gate'"):
        ultraedit(tiny, REQUESTS, config=UltraEditConfig(layers={"gate": [0]}))
    with pytest.raises(ValueError, match="layer is 9"):
        ultraedit(tiny, REQUESTS, config=UltraEditConfig(layers={"out": [9]}))
    with pytest.raises(rl.errors.EditError, match="at least 2 requests at once"):
        ultraedit(tiny, one_token(tiny), config=UltraEditConfig(layers={"out": [0]}), progress=False)
    assert all(torch.equal(value, kept[name]) for name, value in memory.tensors.items())
    assert same(tiny, before)


@pytest.mark.parametrize(
    "wrong", [{"layers": {"out": [2, 1]}}, {"layers": {}}, {"learning_rate": 0.0}, {"requests_per_pass": 0}]
)
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UltraEditConfig(**wrong)
