"""Heads, subsets, severed sublayers, metrics, sets of states, and the approximation."""

import pytest
import torch

import rome_lens as rl
from rome_lens.models import state_name

FACT = rl.Fact("In Italy, {} is located in the city of", "The Colosseum")
NOISE = rl.GaussianNoise(std=0.5, seed=3)


def trace(model, fact=FACT, **options):
    return rl.causal_trace(model, fact, corruption=NOISE, samples=3, progress=False, **options)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama-gqa"])
def test_restoring_everything_gives_the_clean_probability_and_nothing_the_corrupted_one(tiny_model, family):
    model = tiny_model(family)
    result = trace(model)
    everything = [rl.locate.State("resid", p, layer) for p in range(len(result.tokens)) for layer in range(3)]
    for kind in ("mlp", "attn"):
        everything += [rl.locate.State(kind, p, layer) for p in range(len(result.tokens)) for layer in range(3)]
    restored = [
        rl.locate.restore_states(model, FACT, s, corruption=NOISE, samples=3) for s in (everything, everything[:0])
    ]
    assert restored[0] == pytest.approx(result.clean, abs=1e-5)
    assert restored[1] == pytest.approx(result.corrupted, abs=1e-5)


@pytest.mark.parametrize("kind", ["resid", "mlp", "attn"])
def test_one_restored_state_is_a_cell_of_the_grid(tiny_model, kind):
    model = tiny_model("llama-gqa")
    result = trace(model, kind=kind, window=1)
    one = rl.locate.restore_states(model, FACT, [rl.locate.State(kind, 5, 1)], corruption=NOISE, samples=3)
    assert one == pytest.approx(result.restored[5, 1].item(), abs=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama-gqa"])
def test_head_grid_restores_that_heads_output(tiny_model, family):
    model = tiny_model(family)
    result = trace(model, kind="head", head=2)
    for position, layer in ((4, 0), (6, 2)):
        one = rl.locate.restore_states(
            model, FACT, [rl.locate.State("head", position, layer, head=2)], corruption=NOISE, samples=3
        )
        assert one == pytest.approx(result.restored[position, layer].item(), abs=1e-6)


def test_all_heads_together_are_the_attention(tiny_model):
    model = tiny_model("llama-gqa")
    heads = [rl.locate.State("head", 6, 1, head=head) for head in range(4)]
    whole = rl.locate.restore_states(model, FACT, [rl.locate.State("attn", 6, 1)], corruption=NOISE, samples=3)
    assert rl.locate.restore_states(model, FACT, heads, corruption=NOISE, samples=3) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("kind", ["resid", "mlp"])
def test_subsets_of_positions_and_layers_are_the_same_cells(tiny, kind):
    whole = trace(tiny, kind=kind, window=2)
    some = trace(tiny, kind=kind, window=2, positions=[0, 4, 7], layers=[0, 2])
    wanted = torch.zeros_like(whole.restored, dtype=torch.bool)
    wanted[torch.tensor([0, 4, 7])[:, None], torch.tensor([0, 2])] = True
    assert torch.allclose(some.restored[wanted], whole.restored[wanted], atol=1e-6)
    assert some.restored[~wanted].isnan().all()
    assert len(some.to_frame()) == 6


def plain_severed(model, result, position: int, layer: int, severed: tuple[str, ...], where: list[int]) -> float:
    """Two passes with hooks: the corrupted run's sublayer outputs, and the restored run that holds them."""
    tokens = model.to_tokens(FACT.text).expand(3, -1)
    start, stop = result.subject_range
    embedded = NOISE.corrupted(model, FACT, model.embed(tokens[0])[start:stop], 3)
    clean = model.run_with_cache(tokens[:1])[1]

    def corrupt(value, hook):
        value[:, start:stop] = embedded
        return value

    names = [state_name(kind, i) for kind in severed for i in range(3)]
    kept = {}
    model.run_with_hooks(
        tokens, fwd_hooks=[("hook_embed", corrupt)] + [(n, lambda v, hook: kept.update({hook.name: v})) for n in names]
    )

    def hold(value, hook):
        value = value.clone()
        value[:, where] = kept[hook.name][:, where]
        return value

    def restore(value, hook):
        value = value.clone()
        value[:, position] = clean[hook.name][0, position]
        return value

    hooks = [("hook_embed", corrupt), (state_name("resid", layer), restore), *((name, hold) for name in names)]
    answer = clean["ln_final.hook_normalized"]  # only to keep the cache alive
    assert answer is not None
    top = model(tokens[:1])[0, -1].argmax()
    return model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1].softmax(-1)[:, top].mean().item()


@pytest.mark.parametrize("severed", [("mlp",), ("attn",), ("mlp", "attn")])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama-gqa", "phi"])  # phi: a Bridge
@torch.no_grad()
def test_severed_traces_equal_two_plain_passes(tiny_model, family, severed):
    model = tiny_model(family)
    result = trace(model, severed=severed)
    everywhere = trace(model, severed=severed, severed_positions=range(len(result.tokens)))
    for position, layer in ((4, 0), (6, 1)):
        plain = plain_severed(model, result, position, layer, severed, [position])
        assert result.restored[position, layer].item() == pytest.approx(plain, abs=1e-5)
        plain = plain_severed(model, result, position, layer, severed, list(range(position, len(result.tokens))))
        assert everywhere.restored[position, layer].item() == pytest.approx(plain, abs=1e-5)


def test_severing_all_attention_and_mlps_everywhere_leaves_nothing(tiny):
    """Then no restored state reaches the last position, but for the one that is there."""
    result = trace(tiny, severed=("mlp", "attn"), severed_positions=range(20))
    assert (result.indirect_effect[:-1].abs() < 1e-6).all()
    assert result.indirect_effect[-1, -1].abs() > 1e-4


def test_metrics_are_read_off_the_same_runs(tiny):
    prob, logprob = trace(tiny), trace(tiny, metric="logprob")
    assert logprob.clean == pytest.approx(torch.tensor(prob.clean).log().item(), abs=1e-5)
    one = [
        trace(tiny, metric=m, wrong_answer="Rome").restored[4, 1].item()
        for m in ("prob", "logprob", "logit_diff", "kl")
    ]
    single = rl.causal_trace(tiny, FACT, corruption=NOISE, samples=1, metric="prob", progress=False).restored[4, 1]
    alone = rl.causal_trace(tiny, FACT, corruption=NOISE, samples=1, metric="logprob", progress=False).restored[4, 1]
    assert alone.item() == pytest.approx(single.log().item(), abs=1e-5)
    assert len(set(one)) == 4


def test_divergence_is_zero_after_the_clean_prompt_and_where_all_is_restored(tiny):
    result = trace(tiny, metric="kl")
    assert result.clean == pytest.approx(0, abs=1e-6)
    assert result.restored[-1, -1].item() == pytest.approx(0, abs=1e-5)
    assert result.corrupted > 0.01


def test_logit_difference_is_that_of_the_two_tokens(tiny):
    result = trace(tiny, metric="logit_diff", wrong_answer="Rome")
    logits = tiny(tiny.to_tokens(FACT.text))[0, -1]
    wrong = tiny.tokenizer(" Rome", add_special_tokens=False)["input_ids"][0]
    assert result.clean == pytest.approx((logits.max() - logits[wrong]).item(), abs=1e-4)


def test_attribution_of_small_noise_is_nearly_exact(tiny):
    """Then the first order is nearly all there is."""
    small = rl.GaussianNoise(std=1e-3, seed=3)
    options = {"corruption": small, "samples": 3, "metric": "logprob", "progress": False}
    for kind in ("resid", "mlp", "attn"):
        exact = rl.causal_trace(tiny, FACT, kind=kind, window=1, **options)
        approximate = rl.causal_trace(tiny, FACT, kind=kind, window=1, method="attribution", **options)
        assert approximate.config.method == "attribution"
        assert set(approximate.to_frame().method) == {"attribution"}
        assert approximate.corrupted == pytest.approx(exact.corrupted, abs=1e-6)
        error = (approximate.indirect_effect - exact.indirect_effect).abs().max()
        assert error < 0.05 * exact.indirect_effect.abs().max()


@pytest.mark.parametrize("family", ["gptj", "neox", "llama-gqa", "phi"])
def test_attribution_of_a_head_is_a_part_of_the_attentions(tiny_model, family):
    model = tiny_model(family)
    options = {"method": "attribution", "metric": "logprob"}
    whole = trace(model, kind="attn", window=1, **options).indirect_effect
    heads = [trace(model, kind="head", head=head, **options).indirect_effect for head in range(4)]
    assert torch.allclose(torch.stack(heads).sum(0), whole, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "head"}, "head is None, expected a head from 0 to 3"),
        ({"kind": "head", "head": 4}, "expected a head from 0 to 3"),
        ({"head": 1}, "kind is 'resid' and head is 1"),
        ({"layers": [3]}, r"layers \[3\] do not exist"),
        ({"positions": [99]}, r"positions \[99\] do not exist"),
        ({"kind": "mlp", "severed": ("mlp",)}, "not what is restored"),
        ({"severed_positions": [1]}, "nothing is severed"),
        ({"severed": ("mlp",), "method": "attribution"}, "Severed traces have no attribution"),
        ({"metric": "logit_diff"}, "give wrong_answer"),
    ],
)
def test_options_that_do_not_fit_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        trace(tiny, **options)


def test_states_that_do_not_exist_are_refused(tiny):
    for state, message in (
        (rl.locate.State("resid", 99, 0), "do not exist|does not exist"),
        (rl.locate.State("resid", 0, 9), r"layers \[9\] do not exist"),
        (rl.locate.State("head", 0, 0), "expected a head"),
    ):
        with pytest.raises(ValueError, match=message):
            rl.locate.restore_states(tiny, FACT, [state])


@pytest.mark.parametrize("method", ["exact", "attribution"])
def test_negative_positions_and_layers_count_from_the_end(tiny, method):
    counted = trace(tiny, positions=[-1, -3], layers=[-1], method=method)
    length = len(counted.tokens)
    whole = trace(tiny, positions=[length - 3, length - 1], layers=[2], method=method)
    assert torch.equal(counted.restored.nan_to_num(-1), whole.restored.nan_to_num(-1))
    assert set(counted.config.positions) == set(whole.config.positions)
    assert counted.config.layers == whole.config.layers


def test_negative_numbers_are_taken_wherever_positions_are(tiny, tmp_path):
    last = rl.causal_trace(tiny, FACT, samples=1, progress=False)
    facts = [FACT, rl.Fact("{} is in", "Rome")]
    traced = rl.trace_facts(tiny, facts, kinds=["resid"], positions=[-1], samples=1, progress=False, out=tmp_path)
    for one in traced.traces:  # of prompts of unlike lengths
        assert set(one.to_frame()["position"]) == {len(one.tokens) - 1}
    shape = last.restored.shape
    ends, starts = (rl.locate.State("mlp", *place) for place in ((-1, -1), (shape[0] - 1, shape[1] - 1)))
    for call in (rl.locate.restore_states, lambda *a, **b: rl.locate.predict_restored(*a, **b).to_dict()):
        assert call(tiny, FACT, [ends], samples=1) == call(tiny, FACT, [starts], samples=1)
    heads = rl.locate.trace_heads(tiny, FACT, position=-2, samples=1, progress=False)
    assert heads.position == shape[0] - 2


@pytest.mark.parametrize("options", [{"positions": [-99]}, {"layers": [-9]}, {"layers": [99]}, {"positions": [99]}])
def test_what_lies_beyond_either_end_is_refused(tiny, options):
    (name, (number,)), *_ = options.items()
    with pytest.raises(ValueError, match=rf"The {name} \[{number}\] do not exist: .* has 0 to \d+ \(or -1"):
        trace(tiny, **options)
