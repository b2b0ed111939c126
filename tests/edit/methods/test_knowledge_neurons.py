"""Knowledge neurons: integrated gradients keep their axioms, and an edit touches the chosen rows alone."""

from dataclasses import replace

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.methods.knowledge_neurons import token_attributions
from tests.edit.artifact.test_edit import same

REQUEST = rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target="Rome, Seattle")
QUIET = {"on_unhealthy": "ignore", "progress": False}
FAMILIES = [("gpt2", False), ("llama-gqa", True), ("gptj", False)]


def ids(model, text: str) -> list[int]:
    return model.to_tokens(text)[0].tolist()


def probability(model, tokens: list[int], answer: int, layer: int, scale: torch.Tensor) -> torch.Tensor:
    """Of a token after `tokens`, with the keys of a layer at the last position times `scale`: a whole pass."""

    def put(key, hook):
        return torch.cat([key[:, :-1], key[:, -1:] * scale], dim=1)

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.mlp.hook_post", put)]):
        return model(torch.tensor([tokens]))[0, -1].softmax(-1)[answer]


@pytest.mark.parametrize(("family", "bos"), FAMILIES)
def test_attributions_equal_a_plain_loop_over_steps(tiny_model, weights_of, family, bos):
    """One pass and gradient for each step and layer, of the whole prompt, gives the same."""
    model = tiny_model(family, bos=bos)
    before, tokens, answer, steps = weights_of(model), ids(model, REQUEST.text), 300, 4
    found = token_attributions(model, tokens, answer, steps=steps)
    for layer in range(3):
        total = torch.zeros(model.cfg.d_mlp)
        for k in range(1, steps + 1):
            scale = torch.full((model.cfg.d_mlp,), k / steps, requires_grad=True)
            total += torch.autograd.grad(probability(model, tokens, answer, layer, scale), scale)[0] / steps
        assert torch.allclose(found[layer], total, atol=1e-6, rtol=1e-4)
    assert same(model, before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("text", [REQUEST.text, "One"])
def test_a_layers_attributions_sum_to_what_its_neurons_bring(tiny, text):
    """The completeness axiom: the sum tends to f(all activations) - f(none) as the steps grow, also for one token."""
    tokens, answer = ids(tiny, text), 300
    errors = {}
    for steps in (10, 100, 1000):
        sums = token_attributions(tiny, tokens, answer, steps=steps).sum(-1)
        with torch.no_grad():
            brought = [
                probability(tiny, tokens, answer, layer, torch.ones(1)) - probability(tiny, tokens, answer, layer, zero)
                for layer, zero in enumerate(torch.zeros(3, 1))
            ]
        errors[steps] = (sums - torch.stack(brought)).abs().max().item()
    assert errors[1000] < errors[100] / 5 < errors[10] / 25
    assert errors[1000] < 1e-2 * max(map(abs, brought))


def test_an_answer_of_several_tokens_has_the_mean_of_their_attributions(tiny):
    fact = rl.Fact(REQUEST.prompt, REQUEST.subject, answer="Paris, Rome")
    found = rl.edit.knowledge_neurons(tiny, fact, progress=False)
    tokens, whole = ids(tiny, fact.text), ids(tiny, f"{fact.text} {fact.answer}")
    assert found.answer == tuple(whole[len(tokens) :])
    assert len(found.answer) > 1
    parts = [token_attributions(tiny, whole[:i], whole[i], steps=20) for i in range(len(tokens), len(whole))]
    assert torch.allclose(found.attributions[0], torch.stack(parts).mean(0))


def test_neurons_are_above_the_threshold_and_shared_by_enough_prompts(tiny):
    """Plain sets of (layer, neuron) pairs give the same choice, the strongest first."""
    config = rl.edit.KnowledgeNeuronsConfig(steps=5, sharing=0.5)
    paraphrases = ("The Eiffel Tower is in", "The city of the Eiffel Tower is")
    found = rl.edit.knowledge_neurons(
        tiny, REQUEST, answer="Paris", paraphrases=paraphrases, config=config, progress=False
    )
    assert found.prompts == (REQUEST.text, *paraphrases)
    coarse = [
        {(i, j) for i, row in enumerate(each.tolist()) for j, value in enumerate(row) if value > 0.2 * each.max()}
        for each in found.attributions
    ]
    expected = {place for place in set.union(*coarse) if sum(place in each for each in coarse) >= 2}
    assert set(found.neurons) == expected < set.union(*coarse)
    strengths = [found.attributions.mean(0)[place].item() for place in found.neurons]
    assert strengths == sorted(strengths, reverse=True)
    few = rl.edit.KnowledgeNeuronsConfig(steps=5, sharing=0.5, most_neurons=2)
    options = {"answer": "Paris", "paraphrases": paraphrases, "config": few, "progress": False}
    assert rl.edit.knowledge_neurons(tiny, REQUEST, **options).neurons == found.neurons[:2]


@pytest.mark.parametrize("true_answer", [None, "Paris"])
def test_the_edit_adds_both_embeddings_to_the_neurons_rows_alone(tiny, weights_of, true_answer):
    before = weights_of(tiny)
    request = replace(REQUEST, true_answer=true_answer)
    edit = rl.edit.kn(tiny, request, **QUIET)
    assert same(tiny, before)
    found = rl.edit.knowledge_neurons(tiny, REQUEST, answer=true_answer, progress=False)
    tokens = ids(tiny, REQUEST.text)
    old = tiny(torch.tensor([tokens]))[0, -1].argmax() if true_answer is None else tiny.to_single_token(" Paris")
    assert found.answer[0] == old
    new = ids(tiny, f"{REQUEST.text} {REQUEST.target}")[len(tokens) :]
    assert len(new) > 1
    expected = tiny.W_E[new].sum(0) - 2 * tiny.W_E[old]
    changed = set()
    with edit.applied(tiny, strict=True):
        for layer in range(3):
            difference = tiny.blocks[layer].mlp.W_out - before[f"blocks.{layer}.mlp.W_out"]
            rows = difference.abs().sum(-1).nonzero()[:, 0].tolist()
            changed |= {(layer, row) for row in rows}
            assert torch.allclose(difference[rows], expected.expand(len(rows), -1), atol=1e-5)
    assert changed == set(found.neurons)
    assert same(tiny, before)
    assert (edit.method, edit.requests, edit.config["old_weight"]) == ("kn", (request,), 2.0)


def test_what_cannot_be_done_is_refused(tiny, weights_of):
    before = weights_of(tiny)
    with pytest.raises(ValueError, match="steps is 0, expected at least 1"):
        rl.edit.KnowledgeNeuronsConfig(steps=0)
    with pytest.raises(ValueError, match="threshold is 1.0, expected at least 0 and below 1"):
        rl.edit.KnowledgeNeuronsConfig(threshold=1.0)
    with pytest.raises(ValueError, match="The paraphrase is empty"):
        rl.edit.kn(tiny, REQUEST, paraphrases=[" "], **QUIET)
    with pytest.raises(rl.errors.EditError, match="is one for more than 99% of the 3 prompts"):
        config = rl.edit.KnowledgeNeuronsConfig(threshold=0.9, sharing=0.99)
        rl.edit.kn(tiny, REQUEST, paraphrases=["One, two", "Porsche is"], config=config, **QUIET)
    try:
        tiny.blocks[1].mlp.W_out.data[:] = float("nan")
        with pytest.raises(rl.errors.EditError, match="layer 1 has NaN"):
            rl.edit.kn(tiny, REQUEST, **QUIET)
    finally:
        tiny.load_state_dict(before)
    with pytest.warns(rl.errors.EditWarning, match="of the weight's norm"):
        rl.edit.kn(tiny, REQUEST, config=rl.edit.KnowledgeNeuronsConfig(new_weight=100.0), progress=False)
