"""AnyEdit: what it writes, what it leaves alone, and what it refuses."""

import re
from dataclasses import replace

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import rome_lens as rl
from rome_lens.edit.methods.anyedit import AnyEditConfig, anyedit, anyedit_targets
from rome_lens.edit.search.key import prefix_activations
from rome_lens.edit.search.windows import answer_rows
from rome_lens.models import key_name, state_name
from tests.edit.methods.test_rome import covariance_of

PASSAGE = "Rome, the capital."
REQUEST = rl.EditRequest("One, two, {}", "The Eiffel Tower", target=PASSAGE)
OTHER = rl.EditRequest("The capital of {} is", "France", target="Honda.")
# A random model goes on with nothing by itself, so each token has to be a window; and the changes have to be large.
FAR = {"clamp_norm_factor": 100.0, "steps": 8, "learning_rate": 4.0, "window": 1, "covariance_weight": 1e-4}
QUICK = {"steps": 4, "window": 3, "covariance_weight": 1e-4}  # where it does not matter whether the answer is said


@pytest.fixture(params=["gpt2", "gptj", "llama-gqa", "bridge"])
def model(request, tiny_model, tiny_folder):
    """A tiny model of each kind of MLP and of both classes."""
    if request.param != "bridge":
        return tiny_model(request.param)
    folder = tiny_folder("llama")
    loaded = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return TransformerBridge.boot_transformers(str(folder), hf_model=loaded[0], tokenizer=loaded[1], device="cpu")


def edit_of(model, requests=REQUEST, *, layers=(1,), **options) -> rl.Edit:
    covariances = {layer: covariance_of(model, layer) for layer in layers}
    config = AnyEditConfig(**(options or FAR))
    return anyedit(model, requests, covariances=covariances, config=config, on_unhealthy="ignore", progress=False)


def row_of(model, request=REQUEST):
    return answer_rows(model, [request])[0]


def targets_of(model, *requests, **options) -> rl.edit.AnyEditTargets:
    return anyedit_targets(model, requests, layer=1, config=AnyEditConfig(**options), progress=False)


def searched(model, request, **options):
    return targets_of(model, request, **options).values[request].values()


def answer_of(model, request=REQUEST) -> str:
    ids, start = row_of(model, request)
    return rl.evaluate.generate_answers(model, [request.text], new_tokens=len(ids) - start, stops=())[0].text


def test_the_model_says_the_whole_answer_and_only_the_windows_positions_move(model, weights_of):
    """With one layer the states of all other positions of prompt and answer stay, and these get to what was sought."""
    before, (ids, start), name = weights_of(model), row_of(model), state_name("resid", 1)
    assert answer_of(model) != PASSAGE
    at_first = prefix_activations(model, name, 1, [ids])
    edit = edit_of(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with edit.applied(model, strict=True):
        assert answer_of(model) == PASSAGE
        after = prefix_activations(model, name, 1, [ids])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    moves = edit.updates[0].right
    assert len(moves) == len(ids) - start > 3
    for end in range(1, len(ids) + 1):
        sought = moves[end - start] if start <= end < len(ids) else torch.zeros(model.cfg.d_model)
        assert (after[ids[:end]] - at_first[ids[:end]] - sought).norm() < 0.02 * moves.norm(dim=-1).min()
    assert (edit.method, edit.config["layers"]) == ("anyedit", [1])


def test_with_one_window_and_one_layer_the_write_is_the_closed_form(tiny):
    """D = (lambda C + K_p^T K_p + k k^T)^-1 k r^T, in float64, where K_p are the keys of all other positions."""
    (ids, start), weight = row_of(tiny), 10.0
    (update,) = edit_of(tiny, **QUICK | {"window": 100, "covariance_weight": weight}).updates
    keys = prefix_activations(tiny, key_name(1), 1, [ids])
    key = keys.pop(ids[:start])
    others = torch.stack(list(keys.values()))
    gram = weight * covariance_of(tiny).second_moment.double() + others.T @ others + key[:, None] * key
    (value,) = searched(tiny, REQUEST, **QUICK | {"window": 100})
    expected = torch.linalg.solve(gram, key)[:, None] * (value.vector - value.initial).double()
    assert torch.allclose((update.left @ update.right).double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def test_a_windows_search_sees_the_states_of_earlier_windows(tiny):
    """What the search ends with is the loss of the window under hooks that put all states into place."""
    ids, _ = row_of(tiny)
    found = targets_of(tiny, REQUEST, window=4, steps=4).values[REQUEST]
    deltas = {len(place) - 1: value.vector - value.initial for place, value in found.items()}

    def put(state, hook):
        for position, delta in deltas.items():
            state[:, position] += delta
        return state

    with tiny.hooks(fwd_hooks=[(state_name("resid", 1), put)]), torch.no_grad():
        log_probs = tiny(torch.tensor([ids]))[0].log_softmax(-1)
    for place, value in found.items():
        end = min(len(place) + 4, len(ids))
        nll = -sum(log_probs[i - 1, ids[i]] for i in range(len(place), end)) / (end - len(place))
        assert nll.item() == pytest.approx(value.nll, abs=1e-4)


def test_several_answers_are_written_at_once_and_over_several_layers(tiny):
    both = (REQUEST, OTHER)
    edit = edit_of(tiny, both, layers=(0, 1))
    with edit.applied(tiny):
        assert [answer_of(tiny, request) for request in both] == [request.target for request in both]
    assert [update.layer for update in edit.updates] == [0, 1]


@pytest.mark.parametrize("tokens_at_once", [1, 10**6])
def test_answers_searched_together_get_what_they_get_alone(model, monkeypatch, tokens_at_once):
    """Three answers, of one window and of several, whose prompts differ in length; split into batches or not."""
    monkeypatch.setattr("rome_lens.edit.search.windows.tokens_that_fit", lambda *_, **__: tokens_at_once)
    third = rl.EditRequest("{}", "Dante", target="Italian and more than that.")
    together = targets_of(model, REQUEST, OTHER, third, **QUICK)
    lengths = {len(windows) for windows in together.values.values()}
    assert len(lengths) == 3
    for request in (REQUEST, OTHER, third):
        alone = targets_of(model, request, **QUICK).values[request]
        assert together.values[request].keys() == alone.keys()
        for place, value in alone.items():
            found = together.values[request][place]
            assert torch.allclose(found.vector, value.vector, rtol=1e-3, atol=1e-4 * value.vector.abs().max())
            assert found.nll == pytest.approx(value.nll, rel=1e-3)


def test_targets_that_were_searched_before_give_the_same_edit_and_those_of_another_edit_are_refused(tiny):
    targets, config = targets_of(tiny, OTHER, REQUEST, **QUICK), AnyEditConfig(**QUICK)
    given = {"covariances": {1: covariance_of(tiny)}, "on_unhealthy": "ignore", "progress": False}
    alone, shared = (anyedit(tiny, REQUEST, config=config, targets=each, **given) for each in (None, targets))
    for one, other in zip(alone.updates, shared.updates, strict=True):
        assert torch.allclose(one.left @ one.right, other.left @ other.right, rtol=1e-3, atol=1e-5)
    refused = [
        (rl.EditRequest("{}", "Paris", target="France."), config, "there are none for 'Paris'"),
        (REQUEST, replace(config, window=2), "after layer 1, in windows of 3 tokens, not 1 and 2"),
        (REQUEST, replace(config, steps=5), "searched with steps=4"),
    ]
    for request, other, message in refused:
        with pytest.raises(ValueError, match=f"targets do not fit: .*{re.escape(message)}"):
            anyedit(tiny, request, config=other, targets=targets, **given)
    with alone.applied(tiny), pytest.raises(rl.errors.EditError, match="found on another model, or on other weights"):
        anyedit(tiny, REQUEST, config=config, targets=targets, **given)


def test_what_cannot_be_written_is_refused_before_any_work(tiny, monkeypatch):
    monkeypatch.setattr("rome_lens.edit.search.windows.search_values", None)
    with pytest.raises(ValueError, match="requests is empty"):
        edit_of(tiny, [])
    with pytest.raises(ValueError, match="Two requests are about 'The capital of France is'"):
        edit_of(tiny, [OTHER, rl.EditRequest("The {} is", "capital of France", target="Paris")])
    with pytest.raises(ValueError, match=r"tokens, but .* reads at most 128"):
        edit_of(tiny, rl.EditRequest("{}", "Paris", target=PASSAGE * 40))
    with pytest.raises(rl.errors.CovarianceError, match=re.escape("no covariance of the layers [2], only of [1]")):
        anyedit(tiny, REQUEST, covariances={1: covariance_of(tiny)}, config=AnyEditConfig(layers=[2]))
    with pytest.raises(ValueError, match="window is 0"):
        AnyEditConfig(window=0)
    with pytest.raises(ValueError, match="empty"):
        rl.EditRequest("{}", "Paris", target=" ")
