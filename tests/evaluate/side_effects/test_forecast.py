"""The forecast of an edit's bleed-over: what is added elsewhere over what is added at the edited prompt."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

import rome_lens as rl
from rome_lens.data.records import subject_range
from rome_lens.models import run_and_read, state_name
from tests.edit.artifact.test_edit import REQUEST, made_up

PROMPTS = ["The Colosseum is located in the city of", "Beats Music is owned by", "One, two."]


def added(model, edit, prompt: str, layer: int) -> torch.Tensor:
    """What the edit adds to the layer's MLP output, from two runs: [pos, d_model]."""
    name, tokens = state_name("mlp", layer), model.to_tokens(prompt)
    before = run_and_read(model, tokens, [name])[name]
    with edit.applied(model):
        return (run_and_read(model, tokens, [name])[name] - before)[0]


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
def test_forecast_is_what_the_applied_edit_adds(tiny_model, weights_of, family, bos):
    """Rank one: what is added is the share times what is added at the edited prompt, sign included."""
    model = tiny_model(family, bos=bos)
    weights = weights_of(model)
    edit = made_up(model)
    frame = rl.evaluate.forecast_bleed_over(model, edit, PROMPTS)
    there = added(model, edit, REQUEST.text, 1)[subject_range(model, REQUEST)[1][-1]]
    for prompt in PROMPTS:
        part = frame[frame["prompt"] == prompt]
        assert list(part["token"]) == model.to_str_tokens(prompt)
        assert list(part["position"]) == list(range(len(part)))
        expected = torch.tensor(part["share"].to_numpy())[:, None] * there
        rounding = 1e-3 * expected.abs().max().item()
        assert torch.allclose(added(model, edit, prompt, 1), expected, atol=rounding)
    assert torch.allclose(torch.tensor(frame["size"].to_numpy()), torch.tensor(frame["share"].abs().to_numpy()))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_edited_prompt_gets_the_whole_edit_at_the_subject(tiny):
    frame = rl.evaluate.forecast_bleed_over(tiny, made_up(tiny, layers=(0, 2)), [REQUEST.text])
    assert list(frame["layer"].unique()) == [0, 2]
    last = subject_range(tiny, REQUEST)[1][-1]
    at_subject = frame[frame["position"] == last]
    assert at_subject["share"].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert at_subject["size"].tolist() == pytest.approx([1, 1], abs=1e-5)


def test_an_edit_of_higher_rank_is_compared_as_a_vector(tiny):
    parts = [made_up(tiny, seed=seed).updates[0] for seed in range(2)]
    joined = rl.edit.Update(1, torch.cat([p.left for p in parts], 1), torch.cat([p.right for p in parts], 0))
    edit = made_up(tiny)
    both = replace(edit, updates=(joined,))
    frame = rl.evaluate.forecast_bleed_over(tiny, both, PROMPTS[:1])
    there = added(tiny, both, REQUEST.text, 1)[subject_range(tiny, REQUEST)[1][-1]]
    here = added(tiny, both, PROMPTS[0], 1)
    assert torch.allclose(torch.tensor(frame["size"]).float(), here.norm(dim=-1) / there.norm(), rtol=1e-3)
    assert torch.allclose(torch.tensor(frame["share"]).float(), here @ there / there.norm() ** 2, atol=1e-3)
    assert (frame["share"].abs() < frame["size"] + 1e-6).all()
    same = rl.evaluate.forecast_bleed_over(tiny, replace(edit, updates=tuple(parts)), PROMPTS[:1])
    assert torch.allclose(torch.tensor(same["size"]), torch.tensor(frame["size"]), rtol=1e-4)


def test_each_prompt_is_compared_with_the_request_that_it_is_most_like(tiny):
    """With several requests, each of their own prompts gets the whole edit at its subject."""
    other = rl.EditRequest("{} is owned by", "Beats Music", target="Honda")
    edit = replace(made_up(tiny), requests=(REQUEST, other))
    frame = rl.evaluate.forecast_bleed_over(tiny, edit, [REQUEST.text, other.text])
    alone = [
        rl.evaluate.forecast_bleed_over(tiny, replace(edit, requests=(one,)), PROMPTS[:1]) for one in (REQUEST, other)
    ]
    both = rl.evaluate.forecast_bleed_over(tiny, edit, PROMPTS[:1])
    for request in (REQUEST, other):
        part = frame[frame["prompt"] == request.text].set_index("position")
        assert abs(part["share"][subject_range(tiny, request)[1][-1]]) >= 1 - 1e-5
    largest = pd.concat([one["share"].abs() for one in alone], axis=1).max(axis=1)
    assert both["share"].abs().to_numpy() == pytest.approx(largest.to_numpy(), rel=1e-4)


def test_batches_do_not_change_the_forecast(tiny):
    edit = made_up(tiny)
    together = rl.evaluate.forecast_bleed_over(tiny, edit, PROMPTS)
    apart = rl.evaluate.forecast_bleed_over(tiny, edit, PROMPTS, tokens_per_batch=1)
    assert list(together["prompt"].unique()) == PROMPTS
    assert torch.allclose(torch.tensor(together["share"]), torch.tensor(apart["share"]), atol=1e-5)


def test_the_strongest_position_of_each_prompt_is_kept(tiny):
    frame = rl.evaluate.forecast_bleed_over(tiny, made_up(tiny, layers=(0, 1)), PROMPTS)
    strongest = rl.evaluate.strongest_bleed_over(frame).set_index(["prompt", "layer"])
    assert len(strongest) == 2 * len(PROMPTS)
    for key, part in frame.groupby(["prompt", "layer"]):
        assert strongest.loc[key, "size"] == part["size"].max()
        assert strongest.loc[key, "last_share"] == part["share"].iloc[-1]
        assert part.set_index("position")["share"][strongest.loc[key, "position"]] == strongest.loc[key, "share"]


def test_no_prompts_a_blank_one_or_an_edit_without_effect_are_refused(tiny):
    for prompts in ([], "One, two."):
        with pytest.raises(ValueError, match="expected a list of one text or more"):
            rl.evaluate.forecast_bleed_over(tiny, made_up(tiny), prompts)
    with pytest.raises(ValueError, match="The prompt is empty"):
        rl.evaluate.forecast_bleed_over(tiny, made_up(tiny), [" "])
    with pytest.raises(ValueError, match="adds nothing at its own prompt in layer 1"):
        rl.evaluate.forecast_bleed_over(tiny, made_up(tiny, scale=0.0), PROMPTS)


def test_an_edit_of_another_width_is_refused_before_any_run(tiny):
    update = made_up(tiny).updates[0]
    edit = replace(made_up(tiny), updates=(rl.edit.Update(1, update.left[:-1], update.right),))
    with pytest.raises(rl.errors.EditError, match="127"):
        rl.evaluate.forecast_bleed_over(tiny, edit, PROMPTS)
