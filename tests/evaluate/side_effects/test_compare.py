"""What moves between two conditions of a model: nothing where nothing can, and the same by weights and by hooks."""

import copy
from functools import partial

import pandas as pd
import pytest
import torch
from tqdm.auto import tqdm

import rome_lens as rl
from rome_lens.evaluate.side_effects import compare
from rome_lens.models import key_name, state_name
from rome_lens.models.labels import token_texts
from tests.edit.artifact.test_edit import made_up

PROMPTS = ["The Eiffel Tower is located in the city of", "Beats Music is owned by"]
FRAMES = ("tokens", "divergence", "lens", "contributions")


def hooks_of(edit) -> list:
    """The edit as hooks: what the weights would add is added to the MLP's output."""
    pairs = []
    for update in edit.updates:
        keys: dict[int, torch.Tensor] = {}

        def keep(value, hook, keys=keys):
            keys[0] = value

        def add(value, hook, keys=keys, update=update):
            return value + keys[0] @ update.left @ update.right

        pairs += [(key_name(update.layer), keep), (state_name("mlp", update.layer), add)]
    return pairs


def test_a_model_and_itself_do_not_differ(tiny):
    found = rl.compare_models(tiny, tiny, PROMPTS, progress=False)
    assert (found.contributions["change"] == 0).all()
    assert (found.divergence["kl"] == 0).all()
    assert (found.tokens["before"] == found.tokens["after"]).all()
    assert len(found.tokens) == 5 * len(PROMPTS)
    before, after = (part.drop(columns="condition") for _, part in found.lens.groupby("condition", sort=False))
    pd.testing.assert_frame_equal(before.reset_index(drop=True), after.reset_index(drop=True))


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama-gqa"])
def test_hooks_weights_and_an_edited_copy_say_the_same(tiny_model, weights_of, family):
    model = tiny_model(family)
    weights = weights_of(model)
    edit = made_up(model, layers=(0, 2), scale=0.1)
    edited = copy.deepcopy(model)
    edit.apply(edited)
    by_edit, by_hooks, by_copy = (
        rl.compare_models(model, other, PROMPTS, progress=False) for other in (edit, hooks_of(edit), edited)
    )
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(by_edit, name), getattr(by_copy, name))
        pd.testing.assert_frame_equal(getattr(by_edit, name), getattr(by_hooks, name), rtol=1e-3, atol=1e-5)
    assert (by_edit.divergence["kl"] > 1e-3).all()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_edit_moves_nothing_before_it(tiny, layer):
    found = rl.compare_models(tiny, made_up(tiny, layers=(layer,)), PROMPTS, progress=False)
    moved = found.contributions.pivot_table(index="layer", columns="kind", values="change", aggfunc="min")
    assert (moved.loc[: layer - 1] == 0).all(axis=None)
    assert moved.loc[layer, "attn"] == 0
    assert moved.loc[layer, "mlp"] > 0
    assert (moved.loc[layer + 1 :] > 0).all(axis=None)
    lens = found.lens.pivot(index=["prompt", "layer"], columns="condition", values="answer_probability")
    same = lens["before"] == lens["after"]
    layers = lens.index.get_level_values("layer")
    assert same[layers < layer].all()
    assert not same[layers >= layer].any()


def test_tokens_and_divergence_are_those_of_the_model(tiny):
    """Parity with plain forward passes."""
    edit = made_up(tiny, scale=0.1)
    found = rl.compare_models(tiny, edit, PROMPTS[:1], top=3, progress=False)
    tokens = tiny.to_tokens(PROMPTS[0])
    before = tiny(tokens)[0, -1].log_softmax(-1)
    with edit.applied(tiny):
        after = tiny(tokens)[0, -1].log_softmax(-1)
    kl = (before.exp() * (before - after)).sum()
    assert found.divergence["kl"].item() == pytest.approx(kl.item(), rel=1e-4)
    for column, log_probs in (("before", before), ("after", after)):
        best = found.tokens[found.tokens[f"rank_{column}"] <= 3].sort_values(f"rank_{column}")
        top = log_probs.topk(3)
        assert list(best["token"]) == [tiny.tokenizer.decode([t]) for t in top.indices.tolist()]
        assert best[column].to_numpy() == pytest.approx(top.values.exp().detach().numpy(), rel=1e-4)


def test_the_lens_is_the_final_norm_and_the_unembedding(tiny):
    found = rl.compare_models(tiny, made_up(tiny), PROMPTS[:1], progress=False)
    _, cache = tiny.run_with_cache(tiny.to_tokens(PROMPTS[0]))
    states = torch.stack([cache[state_name("resid", layer)][0, -1] for layer in range(3)])
    expected = tiny.unembed(tiny.ln_final(states[None]))[0].softmax(-1).max(-1)
    before = found.lens[found.lens["condition"] == "before"]
    assert before["probability"].to_numpy() == pytest.approx(expected.values.detach().numpy(), rel=1e-4)
    assert list(before["token"]) == token_texts(tiny, expected.indices.tolist())
    after = found.lens[found.lens["condition"] == "after"].iloc[-1]
    assert after["answer"] == after["token"]
    assert after["answer_probability"] == after["probability"]


def test_the_plot_shows_means_over_prompts(tiny):
    found = rl.compare_models(tiny, made_up(tiny), PROMPTS, progress=False)
    figure = found.plot()
    assert [line.name for line in figure.data] == ["before", "after", "attention", "MLP"]
    mlp = found.contributions[found.contributions["kind"] == "mlp"].groupby("layer")["change"].mean()
    assert list(figure.data[3].y) == pytest.approx(list(mlp), rel=1e-6)


def test_what_does_not_fit_is_refused_before_any_work(tiny, tiny_model):
    with pytest.raises(ValueError, match="expected a list of one text or more"):
        rl.compare_models(tiny, tiny, [])
    with pytest.raises(ValueError, match="top is 0"):
        rl.compare_models(tiny, tiny, PROMPTS, top=0)
    other = copy.deepcopy(tiny)
    other.cfg.n_layers = 2
    with pytest.raises(ValueError, match="layers, dimensions and tokens, expected the same"):
        rl.compare_models(tiny, other, PROMPTS, progress=False)


def test_a_bar_that_is_drawn_along_the_way_leaves_no_prompt_out(tiny, monkeypatch):
    """tqdm's `update` tells whether it drew the bar, which a slow model makes it do at every prompt."""
    monkeypatch.setattr(compare, "tqdm", partial(tqdm, mininterval=0))
    found = rl.compare_models(tiny, tiny, PROMPTS)
    assert list(found.divergence["prompt"]) == PROMPTS
