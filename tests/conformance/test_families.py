"""Every family, in every class of model, is traced, edited and reverted, with the same numbers for the same weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import rome_lens as rl
from rome_lens import models
from rome_lens.data.records import subject_range
from tests.conformance.conftest import EVERY, FAMILIES, KINDS
from tests.conformance.plain import FACT, LAYER, NOISE, REQUEST, covariance, edit, plain_trace, trace
from tests.tiny import CORPUS

every_family_and_kind = pytest.mark.parametrize(("family", "kind"), EVERY)


@every_family_and_kind
@torch.no_grad()
def test_the_logits_are_hugging_faces(made, tiny_folder, family, kind):
    model, tokens = made(family, kind), torch.arange(1, 15)[None]
    expected = AutoModelForCausalLM.from_pretrained(tiny_folder(family), dtype=torch.float32)(tokens).logits
    found = models.logits(model, models.run(model, tokens)[0])
    torch.testing.assert_close(found.log_softmax(-1), expected[0].log_softmax(-1), atol=2e-4, rtol=0)


@every_family_and_kind
@pytest.mark.parametrize("restored", ["resid", "mlp", "attn"])
def test_a_trace_is_that_of_a_plain_loop_of_hooked_passes(made, family, kind, restored):
    model = made(family, kind)
    found = trace(model, restored)
    for (position, layer), expected in plain_trace(model, found).items():
        assert found.restored[position, layer].item() == pytest.approx(expected, abs=2e-5), (position, layer)


@every_family_and_kind
@torch.no_grad()
def test_an_edited_model_answers_to_k_with_v_and_reverts_bit_for_bit(made, weights_of, family, kind):
    model = made(family, kind)
    weights = weights_of(model)
    found = edit(model)
    left, right = found.updates[0].left, found.updates[0].right
    text, subject = subject_range(model, REQUEST)
    names = models.key_name(LAYER), models.state_name("mlp", LAYER)
    tokens, last = torch.tensor([text.ids]), subject.stop - 1
    key = models.run_and_read(model, tokens, names)[names[0]][0, last]  # with one context, k* is the prompt's own key
    value = models.mlp_output(model, LAYER, key) + (key @ left) @ right
    expected = models.mlp_contribution(model, LAYER, value)
    with found.applied(model):
        torch.testing.assert_close(models.mlp_output(model, LAYER, key), value, atol=1e-4, rtol=1e-4)
        answered = models.run_and_read(model, tokens, names)[names[1]][0, last]
    torch.testing.assert_close(answered, expected, atol=1e-4, rtol=1e-4)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())


@every_family_and_kind
@torch.no_grad()
def test_hooks_do_what_weights_do(made, family, kind):
    model, tokens = made(family, kind), torch.arange(1, 15)[None]
    found = edit(model)
    with found.applied(model):
        expected = model(tokens).log_softmax(-1)
    with model.hooks(fwd_hooks=found.hooks(model)):
        hooked = model(tokens).log_softmax(-1)
    torch.testing.assert_close(hooked, expected, atol=2e-4, rtol=0)
    assert not torch.allclose(model(tokens).log_softmax(-1), expected, atol=1e-2)


@pytest.mark.skipif("hooked" not in KINDS, reason="this TransformerLens has one class of models")
@pytest.mark.parametrize("kinds", [("hooked", "bridge"), ("hooked-folded", "bridge-compatible")], ids=" ".join)
@pytest.mark.parametrize("family", [param.values[0] for param in EVERY if param.values[1] == "hooked"])
def test_both_classes_give_the_same_numbers(made, family, kinds):
    one, other = (made(family, kind) for kind in kinds)
    for restored in ("resid", "mlp", "attn", "head"):
        options = {"kind": restored, "samples": 2, "corruption": NOISE, "progress": False}
        options |= {"head": 1} if restored == "head" else {}
        grids = [rl.causal_trace(model, FACT, **options).restored for model in (one, other)]
        torch.testing.assert_close(*grids, atol=1e-4, rtol=0)
    moments = [covariance(model).second_moment for model in (one, other)]
    torch.testing.assert_close(*moments, atol=1e-4, rtol=1e-3)
    deltas = [(found.updates[0].left @ found.updates[0].right).flatten() for found in map(edit, (one, other))]
    assert torch.cosine_similarity(*deltas, dim=0) > 0.999
    assert deltas[0].norm().item() == pytest.approx(deltas[1].norm().item(), rel=1e-2)
    records = rl.load_builtin_records()[:1]
    scores = [rl.evaluate.score_record(model, records[0]) for model in (one, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert models.architecture_digest(one) == models.architecture_digest(other)


@pytest.mark.parametrize("family", FAMILIES)
def test_load_model_loads_the_family(made, tiny_folder, family):
    model = rl.load_model(tiny_folder(family), device="cpu")
    assert model.cfg.model_name == family
    assert model.cfg.default_prepend_bos is False
    assert not model.training
    torch.testing.assert_close(trace(model, "resid").restored, trace(made(family, "bridge"), "resid").restored)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_of_experts_is_traced_but_not_edited(made, kind):
    model = made("mixtral", kind)
    assert trace(model, "resid").restored.isfinite().any()
    with pytest.raises(ValueError, match="a mixture of experts"):
        rl.collect_covariance(model, [LAYER], texts=CORPUS, tokens=10)
