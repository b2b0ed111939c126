"""The ledger: what its weights depend on, what it refuses, and that kills lose nothing."""

from dataclasses import replace

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.methods.preserve import preserved_prompts
from rome_lens.edit.search.value import Value, optimise_values
from rome_lens.edit.sequence.ledger import EditLedger
from tests import tiny as tiny_models
from tests.edit.methods.test_rome import CONTEXTS, REQUEST, covariance_of
from tests.torture import times

pytestmark = pytest.mark.filterwarnings("ignore::rome_lens.errors.EditWarning")  # a random model's edits are large
MANY = times(60, 200)
NAMES = ("Paris", "Rome", "Seattle", "Italy", "France", "Apple", "Porsche", "Honda", "Dante", "Hugo", "Beats", "Space")
REQUESTS = tuple(
    rl.EditRequest("{} is owned by", f"{one} {other} {last}", target=target)
    for one in NAMES
    for other in NAMES
    for last, target in (("Music", "Rome"), ("Tower", "Honda"))
    if one != other
)[:200]
QUICK = rl.RomeConfig(contexts=["{}"], steps=2)


def ledger_of(model, out=None, config=QUICK, layer: int = 1) -> EditLedger:
    return EditLedger(model, covariances={layer: covariance_of(model, layer)}, config=config, out=out)


def change(ledger) -> torch.Tensor:
    update = ledger.edit(on_unhealthy="ignore").updates[0]
    return update.left.double() @ update.right.double()


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return ((one - other).norm() < 1e-5 * other.norm()).item()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A tiny model whose MLPs have 512 dimensions: more than there are facts."""
    config = tiny_models.CONFIGS["llama"]()
    config.intermediate_size = 512
    patch = pytest.MonkeyPatch()
    patch.setitem(tiny_models.CONFIGS, "wide", lambda: config)
    folder = tiny_models.save_model(tmp_path_factory.mktemp("model") / "wide", "wide")
    patch.undo()
    return rl.load_model(folder, device="cpu")


@pytest.mark.torture
def test_many_facts_give_the_same_weights_in_any_order_and_withdrawn_ones_leave_nothing(wide, monkeypatch):
    """Each value is searched for once; the search does not know of the ledger."""
    values: dict[rl.EditRequest, Value] = {}

    def search(model, layer, requests, *rest, **options):
        missing = [request for request in requests if request not in values]
        values.update(zip(missing, optimise_values(model, layer, missing, *rest, **options), strict=True))
        return [values[request] for request in requests]

    monkeypatch.setattr("rome_lens.edit.sequence.ledger.optimise_values", search)
    facts, part = REQUESTS[:MANY], MANY // 4
    forward, backward, fewer = ledger_of(wide), ledger_of(wide), ledger_of(wide)
    forward.add(facts, progress=False)
    for start in range(MANY - 1, -1, -part):
        backward.add(facts[start + 1 - part : start + 1][::-1], progress=False)
    assert set(forward.facts) == set(backward.facts) == set(facts)
    assert forward.facts != backward.facts
    assert same(change(backward), change(forward))
    assert forward.to_frame()["residual"].max() < 1e-3
    fewer.add(facts[part:], progress=False)
    for request in facts[:part]:
        forward.withdraw(request)
    assert same(change(forward), change(fewer))
    room = forward.room()
    assert (room.rank_used, room.width) == (MANY - part, 512)
    weight = wide.blocks[1].mlp.W_out
    assert room.relative_norm == pytest.approx((change(forward).norm() / weight.norm()).item(), rel=1e-4)


@pytest.mark.parametrize("preserve", [None, ["The Space Needle is located in the city of"]])
def test_one_fact_on_the_ledger_is_what_rome_writes(tiny, weights_of, preserve):
    before = weights_of(tiny)
    config = rl.RomeConfig(contexts=CONTEXTS, steps=5)
    options = {"covariance": covariance_of(tiny), "config": config, "on_unhealthy": "ignore", "progress": False}
    update = rl.rome(tiny, REQUEST, preserve=preserve, **options).updates[0]
    ledger = ledger_of(tiny, config=config)
    ledger.add(REQUEST, preserve=preserve, progress=False)
    assert same(change(ledger), update.left.double() @ update.right.double())
    assert ledger.edit(on_unhealthy="ignore").config.get("preserve") == preserve
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_what_a_fact_preserves_goes_when_it_is_withdrawn(tiny):
    ledger, plain = ledger_of(tiny), ledger_of(tiny)
    kept = "The Space Needle is located in the city of"
    ledger.add(REQUESTS[0], progress=False)
    ledger.add(REQUESTS[1], preserve=[kept], progress=False)
    plain.add(REQUESTS[0], progress=False)
    tokens = tiny.to_tokens(kept)
    before = tiny(tokens)
    with ledger.edit(on_unhealthy="ignore").applied(tiny):
        assert torch.allclose(tiny(tokens), before, atol=1e-3)
    assert ledger.room().rank_used > 2
    ledger.withdraw(REQUESTS[1])
    assert same(change(ledger), change(plain))
    assert ledger.room().rank_used == 1


def test_what_is_kept_is_gone_on_with(tiny, tmp_path):
    first = ledger_of(tiny, tmp_path / "ledger")
    first.add(REQUESTS[:3], preserve=["One, two."], progress=False)
    first.withdraw(REQUESTS[1])
    again = ledger_of(tiny, tmp_path / "ledger")
    assert again.facts == (REQUESTS[0], REQUESTS[2])
    assert torch.equal(change(again), change(first))
    again.add(REQUESTS[:3], progress=False)
    assert again.facts == (REQUESTS[0], REQUESTS[2], REQUESTS[1])
    first.withdraw(REQUESTS[1])
    assert first.facts == (REQUESTS[0], REQUESTS[2]), "what another object wrote is seen"


@pytest.mark.parametrize("changes", [{"layer": 2}, {"config": replace(QUICK, steps=3)}])
def test_a_ledger_of_something_else_is_refused(tiny, tmp_path, changes):
    ledger_of(tiny, tmp_path / "ledger").add(REQUESTS[0], progress=False)
    with pytest.raises(rl.errors.FormatError, match="was begun with"):
        ledger_of(tiny, tmp_path / "ledger", **changes)


def test_a_ledger_of_another_model_or_covariance_is_refused(tiny_model, tmp_path):
    ledger_of(tiny_model("gpt2"), tmp_path / "ledger")
    ledger_of(tiny_model("gpt2"), tmp_path / "ledger").add(REQUESTS[0], progress=False)
    with pytest.raises(rl.errors.FormatError, match="was begun with .*weights"):
        ledger_of(tiny_model("gpt2", seed=1), tmp_path / "ledger")
    with pytest.raises(rl.errors.FormatError, match="was begun with .*covariance"):
        other = {1: covariance_of(tiny_model("gpt2")).shrunk(0.5)}
        EditLedger(tiny_model("gpt2"), covariances=other, config=QUICK, out=tmp_path / "ledger")


def test_what_contradicts_or_has_no_room_is_named_before_any_search(tiny, monkeypatch):
    ledger = ledger_of(tiny)
    ledger.add(REQUEST, progress=False)
    monkeypatch.setattr("rome_lens.edit.sequence.ledger.optimise_values", None)
    cases = [
        (replace(REQUEST, target="Honda"), None, ValueError, "is to be 'Rome' and 'Honda'"),
        (replace(REQUEST, prompt="{} is made of"), None, rl.errors.EditError, "have one key: up to the edited token"),
        (
            REQUESTS[0],
            ["The Eiffel Tower is tall"],
            rl.errors.EditError,
            "cannot be preserved while 'The Eiffel Tower is loc",
        ),
        (REQUESTS[:128], None, rl.errors.EditError, "and 129 more are to be edited, but layer 1 .* has 128 dimensions"),
        ([], None, ValueError, "requests is empty"),
    ]
    for requests, preserve, error, says in cases:
        with pytest.raises(error, match=says):
            ledger.add(requests, preserve=preserve, progress=False)
    assert ledger.facts == (REQUEST,)
    ledger.withdraw(REQUEST)
    with pytest.raises(ValueError, match="not among the 0 facts on the ledger, or was withdrawn before"):
        ledger.withdraw(REQUEST)
    with pytest.raises(ValueError, match="ledger is empty"):
        ledger.edit()
    assert ledger.to_frame().empty


def test_a_model_that_was_changed_meanwhile_is_refused(tiny):
    ledger = ledger_of(tiny)
    ledger.add(REQUEST, progress=False)
    edit = ledger.edit(on_unhealthy="ignore")
    elsewhere = rl.rome(tiny, REQUESTS[1], covariance=covariance_of(tiny, 2), config=replace(QUICK, layer=2))
    for changed in (edit, elsewhere):
        for verb in (lambda: ledger.add(REQUESTS[0], progress=False), ledger.edit, ledger.to_frame, ledger.room):
            with (
                changed.applied(tiny),
                pytest.raises(
                    rl.errors.EditError, match="is not what it was .* weights have changed.* Revert the model's edits"
                ),
            ):
                verb()
    assert ledger.facts == (REQUEST,)
    ledger.withdraw(REQUEST)
    assert ledger.facts == (), "what is taken off depends on no weight"


def test_every_verb_sees_what_another_handle_wrote(tiny, tmp_path):
    """Two notebooks have one folder open: a stale handle gave the edit of facts that were withdrawn."""
    first, second = (ledger_of(tiny, tmp_path / "ledger") for _ in range(2))
    second.add(REQUESTS[:2], progress=False)
    assert first.facts == second.facts == REQUESTS[:2]
    assert torch.equal(change(first), change(second))
    second.withdraw(REQUESTS[0])
    assert first.room() == second.room()
    assert first.to_frame().equals(second.to_frame())
    with pytest.raises(ValueError, match="not among the 1 facts"):
        first.withdraw(REQUESTS[0])
    first.withdraw(REQUESTS[1])
    with pytest.raises(ValueError, match="ledger is empty"):
        second.edit()


def test_what_could_not_be_saved_is_not_on_the_ledger(tiny, tmp_path, monkeypatch):
    ledger = ledger_of(tiny, tmp_path / "ledger")
    ledger.add(REQUEST, progress=False)

    def full(*arguments):
        raise rl.errors.UnavailableError("The disk is full.")

    monkeypatch.setattr("rome_lens.storage.checkpoint.Checkpoint.save", full)
    for verb in (lambda: ledger.add(REQUESTS[:2], progress=False), lambda: ledger.withdraw(REQUEST)):
        with pytest.raises(rl.errors.UnavailableError, match="full"):
            verb()
        assert ledger.facts == (REQUEST,)


def test_a_nearly_full_ledger_warns(tiny):
    long: list[str] = []
    for name in NAMES:
        long.append(f"The oldest capital of {name} is located in the city of")
        if len(preserved_prompts(tiny, long, [REQUEST], [1], token="subject_last").places) > 103:
            break
    with pytest.warns(rl.errors.EditWarning, match=r"nearly full: \d+ of 128 dimensions of layer 1 are used"):
        ledger_of(tiny).add(REQUEST, preserve=long, progress=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"config": rl.RomeConfig.reference(1)}, "consistent is False, expected True"),
        ({"config": rl.RomeConfig(layer=2)}, r"layer is 2, expected one of the covariances' \[1\]"),
        ({"config": rl.RomeConfig(), "layers": (0, 1)}, r"layer is None, expected one of the covariances' \[0, 1\]"),
    ],
)
def test_a_ledger_of_no_layer_or_of_two_keys_is_refused(tiny, options, says):
    covariances = {layer: covariance_of(tiny, layer) for layer in options.pop("layers", (1,))}
    with pytest.raises(ValueError, match=says):
        EditLedger(tiny, covariances=covariances, **options)
