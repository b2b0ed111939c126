"""Loaded models compute what Hugging Face's do, and every way to run them agrees with their own forward pass."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rome_lens as rl
from rome_lens import models
from rome_lens.models import Model, pad
from rome_lens.models.kinds import HookedTransformer, is_bridge
from tests.tiny import save_model

FAMILIES = ["gpt2", "gptj", "neox", "llama", "llama-gqa"]
PROMPT = "The Eiffel Tower is located in the city of"
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(1, 384, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def fresh(tiny_folder: Callable[..., Path]) -> Callable[..., Model]:
    """Gives a tiny model that a test may change."""
    return lambda family="gpt2", **options: rl.load_model(str(tiny_folder(family)), device="cpu", **options)


def as_transformer_lens_stores_it(model: Model) -> Model:
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


# ---------------------------------------------------------------------------------------------------------- loading


@every_family
@pytest.mark.parametrize("bos", [False, True])
@torch.no_grad()
def test_logits_agree_with_hugging_face(tiny_model, tiny_folder, family, bos):
    model, folder = tiny_model(family, bos=bos), tiny_folder(family, bos=bos)
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")["input_ids"]
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
    torch.testing.assert_close(model(PROMPT), expected, atol=1e-4, rtol=0)


@every_family
@pytest.mark.parametrize("bos", [False, True])
def test_bos_is_prepended_if_and_only_if_the_tokenizer_does_it(tiny_model, tiny_folder, family, bos):
    model = tiny_model(family, bos=bos)
    assert model.cfg.default_prepend_bos is bos
    expected = AutoTokenizer.from_pretrained(tiny_folder(family, bos=bos))(PROMPT)["input_ids"]
    assert model.to_tokens(PROMPT)[0].tolist() == expected


@every_family
def test_a_loaded_model_is_in_evaluation_mode(tiny_model, family):
    assert not any(module.training for module in tiny_model(family).modules())


@every_family
def test_weights_are_not_folded_or_centred(tiny_model, tiny_folder, family):
    model = tiny_model(family)
    hf = AutoModelForCausalLM.from_pretrained(tiny_folder(family), dtype=torch.float32)
    torch.testing.assert_close(model.embed.W_E, hf.get_input_embeddings().weight, rtol=0, atol=0)
    torch.testing.assert_close(model.unembed.W_U.T, hf.get_output_embeddings().weight, rtol=0, atol=0)
    assert model.cfg.normalization_type in ("LN", "RMS")


@pytest.mark.parametrize("word", ["llama-3", "my-gemma-2b", "mistral", "bloom"])
@torch.no_grad()
def test_words_in_the_path_do_not_decide_the_architecture(tmp_path, word):
    folder = save_model(tmp_path / word / "pythia-gpt2-llama", "gpt2")
    model = rl.load_model(str(folder), device="cpu")
    ids = model.to_tokens(PROMPT)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
    assert (model.cfg.architecture if is_bridge(model) else model.cfg.original_architecture) == "GPT2LMHeadModel"
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=0)


def test_the_model_is_named_after_its_folder(tiny_model):
    assert tiny_model("neox").cfg.model_name == "neox"


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_the_dtype_is_that_of_the_weights_and_the_logits_stay_close(fresh, tiny_model, tokens, family, dtype):
    model = fresh(family, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.cfg.dtype == dtype
    tolerance = {torch.bfloat16: 0.25, torch.float64: 1e-4}[dtype]
    expected = tiny_model(family)(tokens).log_softmax(-1)
    torch.testing.assert_close(model(tokens).double().log_softmax(-1), expected.double(), atol=tolerance, rtol=0.1)


def test_a_checkpoint_in_another_dtype_is_loaded_in_the_one_asked_for(tiny_folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_folder("llama")).to(torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder("llama")).save_pretrained(tmp_path)
    model = rl.load_model(str(tmp_path), device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# ---------------------------------------------------------------------------------------------------------- layout


@every_family
def test_the_layout_changes_no_value_shape_or_name(fresh, family, weights_of):
    model = as_transformer_lens_stores_it(fresh(family))
    before = weights_of(model)
    parameters = dict(model.named_parameters())
    assert rl.models.optimize_layout(model) is model
    after = model.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


@every_family
@torch.no_grad()
def test_the_layout_leaves_the_logits_as_they_are(fresh, tokens, family):
    model = as_transformer_lens_stores_it(fresh(family))
    before = model(tokens)
    torch.testing.assert_close(rl.models.optimize_layout(model)(tokens), before, atol=1e-5, rtol=1e-5)


def is_laid_out(model: Model) -> bool:
    """Whether the orders in which HookedTransformer reads its weights need no copies."""
    views = [model.unembed.W_U.T]
    for block in model.blocks:
        prefix = "_" if hasattr(block.attn, "_W_K") else ""
        attention = [block.attn.W_Q, getattr(block.attn, f"{prefix}W_K"), getattr(block.attn, f"{prefix}W_V")]
        views += [weight.permute(0, 2, 1) for weight in attention]
        views.append(block.attn.W_O.permute(2, 0, 1))
        if hasattr(block.mlp, "W_gate"):
            views += [block.mlp.W_in.T, block.mlp.W_gate.T, block.mlp.W_out.T]
    return all(view.is_contiguous() for view in views)


@pytest.mark.hooked
@every_family
def test_a_loaded_models_weights_are_read_without_copies(fresh, family):
    model = fresh(family)
    assert is_laid_out(model)
    assert not is_laid_out(as_transformer_lens_stores_it(model))


@pytest.mark.hooked
@every_family
def test_the_layout_survives_edits_in_place(fresh, family):
    model = fresh(family)
    with torch.no_grad():
        models.output_matrix(model, 1).add_(1.0)
        model.unembed.W_U.mul_(2.0)
    assert is_laid_out(model)


@every_family
def test_laying_out_twice_moves_nothing(fresh, family):
    model = fresh(family)
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    assert {name: value.data_ptr() for name, value in rl.models.optimize_layout(model).state_dict().items()} == before


@every_family
@torch.no_grad()
def test_a_deep_copy_has_the_layout_and_weights_of_its_own(fresh, tokens, family):
    model = fresh(family)
    expected = model(tokens)
    copied = copy.deepcopy(model)
    models.output_matrix(copied, 1).add_(1.0)
    assert is_bridge(model) or is_laid_out(copied)
    assert torch.equal(model(tokens), expected)
    assert not torch.allclose(copied(tokens), expected)


@every_family
@torch.no_grad()
def test_a_laid_out_model_loads_an_ordinary_state_dict(fresh, tiny_folder, tokens, family):
    model, other = fresh(family), rl.load_model(str(tiny_folder(family, seed=1)), device="cpu")
    ordinary = {name: value.contiguous() for name, value in other.state_dict().items()}
    model.load_state_dict(ordinary)
    assert is_bridge(model) or is_laid_out(model)
    torch.testing.assert_close(model(tokens), other(tokens), atol=1e-5, rtol=1e-5)


def test_gradients_reach_laid_out_weights(fresh, tokens):
    model = fresh("llama-gqa")
    model(tokens, return_type="loss").backward()
    gradient = models.find_output_matrix(model, 1).parameter.grad
    plain = as_transformer_lens_stores_it(fresh("llama-gqa"))
    plain(tokens, return_type="loss").backward()
    torch.testing.assert_close(gradient, models.find_output_matrix(plain, 1).parameter.grad, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------- running


@every_family
@torch.no_grad()
def test_run_and_logits_together_are_the_models_forward_pass(tiny_model, tokens, family):
    model = tiny_model(family)
    residual = models.run(model, tokens)
    ours = torch.stack([models.logits(model, row) for row in residual])
    torch.testing.assert_close(ours, model(tokens), atol=1e-5, rtol=1e-5)


@every_family
@torch.no_grad()
def test_run_with_right_padding_gives_each_row_what_it_gets_alone(tiny_model, tokens, family):
    model = tiny_model(family)
    rows = [tokens[0].tolist(), tokens[1, :5].tolist(), tokens[2, :9].tolist()]
    padded, mask = pad(rows)
    residual = models.run(model, padded, mask=mask)
    for row, states in zip(rows, residual, strict=True):
        alone = models.run(model, torch.tensor([row]))[0]
        torch.testing.assert_close(states[: len(row)], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_pad_token_at_the_start_of_a_row_is_read_as_any_token(tiny_model):
    model = tiny_model("gpt2", bos=True)
    tokens = torch.tensor([[0, 5, 6, 0], [0, 7, 8, 9]])
    together = models.run(model, tokens)
    torch.testing.assert_close(together[0], models.run(model, tokens[:1])[0], atol=1e-5, rtol=1e-5)
    changed = models.run(model, tokens.where(torch.tensor([[0, 1, 1, 1]]).bool(), 3))
    assert not torch.allclose(changed[0, 1], together[0, 1])


@every_family
@pytest.mark.parametrize("largest", [1, 17, 256])
@torch.no_grad()
def test_rows_run_as_a_tree_get_what_they_get_alone(tiny_model, monkeypatch, family, largest):
    """Whatever else is in the tree, wherever a row branches off, and however many trees there are."""
    monkeypatch.setattr("rome_lens.models.running.prefix_tree._LARGEST", largest)
    model = tiny_model(family)
    rows = [(5, 6, 7, 8), (5, 6, 7), (5, 6, 9, 3, 3), (9,), (8,), (5, 6, 9), (7, 5, 6, 7, 8), (5, 6, 7, 8), (5, 4)]
    for row, states in zip(rows, models.run_tree(model, rows), strict=True):
        torch.testing.assert_close(states, models.run(model, torch.tensor([row]))[0], atol=2e-5, rtol=1e-5)
    assert not any(hook.fwd_hooks for hook in model.hook_dict.values())


@pytest.mark.hooked
@torch.no_grad()
def test_a_tree_holds_each_beginning_once(tiny, monkeypatch):
    """Eight rows of 25 tokens with 15 distinct beginnings, and at most one filler where a row branches off."""
    ran = []
    tree = models.running.prefix_tree
    plain = tree.run
    monkeypatch.setattr(tree, "run", lambda model, tokens, **o: ran.append(tokens) or plain(model, tokens, **o))
    models.run_tree(tiny, [(5, 6, 7, 8), (5, 6, 7), (5, 6, 9, 3, 3), (9,), (8,), (7, 5, 6, 7, 8), (5, 6, 7, 8), (5, 4)])
    assert ran[0].shape[0] == 1
    assert 15 <= ran[0].shape[1] <= 15 + 3


@pytest.mark.hooked
@torch.no_grad()
def test_a_tree_is_no_larger_than_a_local_window_and_alibi_rows_stay_apart():
    """Where attention counts the tokens between two by itself, a branch must not stand between them."""
    rows = [(1, 2, 3, 4, 5), (1, 2, 6), (1, 7, 8, 9), (2, 3)]
    for options in (
        {"use_local_attn": True, "window_size": 6, "attn_types": ["local", "global"]},
        {"positional_embedding_type": "alibi"},
    ):
        torch.manual_seed(0)
        cfg = {"n_layers": 2, "d_model": 16, "d_head": 8, "n_ctx": 32, "d_vocab": 12, "act_fn": "gelu", "device": "cpu"}
        model = HookedTransformer({**cfg, **options}).eval()
        for row, states in zip(rows, models.run_tree(model, rows), strict=True):
            torch.testing.assert_close(states, models.run(model, torch.tensor([row]))[0], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_run_stops_before_a_layer(tiny_model, tokens):
    model = tiny_model("neox")
    _, cache = model.run_with_cache(tokens)
    expected = cache[models.state_name("resid", 1)]
    torch.testing.assert_close(models.run(model, tokens, stop_at_layer=2), expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_hooks_act_in_a_run_and_are_gone_afterwards(tiny, tokens):
    before = models.run(tiny, tokens)
    changed = models.run(tiny, tokens, hooks=[(models.state_name("mlp", 1), lambda value, hook: value * 0)])
    assert not torch.allclose(changed, before)
    assert torch.equal(models.run(tiny, tokens), before)


def test_hooks_are_gone_after_a_run_that_raised(tiny, tokens):
    def broken(value: torch.Tensor, hook: object) -> torch.Tensor:
        raise RuntimeError("broken hook")

    with pytest.raises(RuntimeError, match="broken hook"):
        models.run(tiny, tokens, hooks=[(models.state_name("mlp", 1), broken)])
    assert not any(point.fwd_hooks for point in tiny.hook_dict.values())


@every_family
@torch.no_grad()
def test_mlp_and_attention_states_are_what_is_added_to_the_residual_stream(tiny_model, tokens, family):
    model = tiny_model(family)
    _, cache = model.run_with_cache(tokens)
    added = cache[models.state_name("mlp", 1)] + cache[models.state_name("attn", 1)]
    before, after = cache[models.state_name("resid", 0)], cache[models.state_name("resid", 1)]
    torch.testing.assert_close(after, before + added, atol=1e-5, rtol=1e-5)


@every_family
@torch.no_grad()
def test_the_mlps_output_is_the_key_times_the_output_matrix(tiny_model, tokens, family):
    model = tiny_model(family)
    _, cache = model.run_with_cache(tokens)
    key, output = cache[models.key_name(1)], cache[models.state_name("mlp", 1)]
    torch.testing.assert_close(models.mlp_output(model, 1, key), output, atol=1e-5, rtol=1e-5)
    assert torch.equal(models.mlp_contribution(model, 1, output), output)
    assert not models.norms_mlp_output(model, 1)


@pytest.mark.hooked
@pytest.mark.parametrize(
    "option", [{"use_normalization_before_and_after": True}, {"original_architecture": "Olmo2ForCausalLM"}]
)
@torch.no_grad()
def test_an_mlp_with_a_norm_after_it_contributes_its_normed_output(tokens, option):
    model = HookedTransformer(
        {
            "n_layers": 2,
            "d_model": 32,
            "n_ctx": 16,
            "d_head": 8,
            "d_mlp": 64,
            "d_vocab": 384,
            "act_fn": "silu",
            "gated_mlp": True,
            "normalization_type": "RMS",
            "init_weights": True,
            "seed": 0,
            "device": "cpu",
            **option,
        }
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "ln" in name:
            parameter.normal_(1.0, 0.3, generator=generator)
    _, cache = model.run_with_cache(tokens)
    output = models.mlp_output(model, 1, cache[models.key_name(1)][0])
    contribution = (cache["blocks.1.hook_resid_post"] - cache["blocks.1.hook_resid_mid"])[0]
    torch.testing.assert_close(models.mlp_contribution(model, 1, output), contribution, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(models.mlp_contribution(model, 1, output[3]), contribution[3], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(output, contribution, atol=1e-2)
    assert models.norms_mlp_output(model, 1)


def residual_before(model: Model, tokens: torch.Tensor, layer: int) -> torch.Tensor:
    _, cache = model.run_with_cache(tokens)
    return cache[f"blocks.{layer}.hook_resid_pre"]


@every_family
@torch.no_grad()
def test_run_with_past_gives_the_residual_states_that_run_gives(tiny_model, tokens, family):
    model = tiny_model(family)
    residual, past = models.run_with_past(model, tokens)
    torch.testing.assert_close(residual, models.run(model, tokens), atol=1e-6, rtol=1e-6)
    heads = model.cfg.n_key_value_heads or model.cfg.n_heads
    assert {tuple(state.past_keys.shape) for state in past} == {(3, 12, heads, model.cfg.d_head)}
    assert len(past) == model.cfg.n_layers


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("length", [0, 1, 7, 11])
@every_family
@torch.no_grad()
def test_a_cached_prefix_continued_equals_the_whole_run(tiny_model, tokens, family, length, start):
    model = tiny_model(family)
    whole, states = models.run_with_past(model, tokens)
    past = {layer: state.upto(length) for layer, state in enumerate(states)}
    rest = residual_before(model, tokens, start)[:, length:]
    continued = models.run_blocks(model, rest, start, model.cfg.n_layers, past=past)
    torch.testing.assert_close(continued, whole[:, length:], atol=1e-5, rtol=1e-4)


@every_family
@torch.no_grad()
def test_a_prefix_run_alone_can_be_continued(tiny_model, tokens, family):
    model = tiny_model(family)
    _, states = models.run_with_past(model, tokens[:, :5])
    rest = residual_before(model, tokens, 1)[:, 5:]
    continued = models.run_blocks(model, rest, 1, 3, past=dict(enumerate(states)))
    torch.testing.assert_close(continued, models.run(model, tokens)[:, 5:], atol=1e-5, rtol=1e-5)


@every_family
@torch.no_grad()
def test_rows_with_a_left_padded_past_and_right_padded_rest_get_what_they_get_alone(tiny_model, tokens, family):
    model = tiny_model(family)
    prefixes, lengths = [6, 2, 4], [12, 5, 9]
    depth, width = max(prefixes), max(n - p for p, n in zip(prefixes, lengths, strict=True))
    generator = torch.Generator().manual_seed(1)
    rest = torch.randn(3, width, model.cfg.d_model, generator=generator)  # what is padded must not matter
    mask = torch.zeros(3, depth + width, dtype=torch.long)
    alone, past = [], {}
    shape = (3, depth, model.cfg.n_key_value_heads or model.cfg.n_heads, model.cfg.d_head)
    for layer in (1, 2):
        past[layer] = models.PastState(*torch.randn(2, *shape, generator=generator))
    for i, (prefix, length) in enumerate(zip(prefixes, lengths, strict=True)):
        row = tokens[i : i + 1, :length]
        residual, states = models.run_with_past(model, row)
        alone.append(residual[0, prefix:])
        rest[i, : length - prefix] = residual_before(model, row, 1)[0, prefix:]
        mask[i, depth - prefix : depth + length - prefix] = 1
        for layer in (1, 2):
            past[layer].past_keys[i, depth - prefix :] = states[layer].past_keys[0, :prefix]
            past[layer].past_values[i, depth - prefix :] = states[layer].past_values[0, :prefix]
    continued = models.run_blocks(model, rest, 1, 3, past=past, mask=mask)
    for states, expected in zip(continued, alone, strict=True):
        torch.testing.assert_close(states[: len(expected)], expected, atol=1e-5, rtol=1e-5)


@every_family
@torch.no_grad()
def test_a_past_serves_a_multiple_of_its_rows_as_blocks(tiny_model, tokens, family):
    model = tiny_model(family)
    whole, states = models.run_with_past(model, tokens)
    past = {layer: state.upto(4) for layer, state in enumerate(states)}
    rest = residual_before(model, tokens, 1)[:, 4:].repeat(2, 1, 1)
    continued = models.run_blocks(model, rest, 1, 3, past=past)
    torch.testing.assert_close(continued, whole[:, 4:].repeat(2, 1, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("last", [1, 3, None])
@every_family
@torch.no_grad()
def test_one_block_gives_the_last_positions_that_the_whole_block_gives(tiny_model, tokens, family, last, split):
    """In the short way, and in the model's own where a block has an input for each head (`split`)."""
    model = tiny_model(family)
    _, states = models.run_with_past(model, tokens)
    past, rest = states[1].upto(4), residual_before(model, tokens, 1)[:, 4:].repeat(2, 1, 1)
    whole = residual_before(model, tokens, 2).repeat(2, 1, 1)
    model.cfg.use_hook_mlp_in = split
    try:
        found = models.run_block(model, rest, 1, past=past, last=last)
    finally:
        model.cfg.use_hook_mlp_in = False
    torch.testing.assert_close(found, whole[:, 4 if last is None else -last :], atol=1e-5, rtol=1e-5)


@pytest.mark.hooked
@every_family
@torch.no_grad()
def test_one_block_calls_the_hooks_that_the_whole_block_calls(tiny_model, tokens, family):
    """Hooks that a user has put on the model act in a trace as in a run."""
    model = tiny_model(family)
    rest = residual_before(model, tokens, 1)

    def called(work):
        names = []
        with model.hooks(fwd_hooks=[(lambda name: True, lambda value, hook: names.append(hook.name))]):
            work()
        return set(names)

    ours = called(lambda: models.run_block(model, rest, 1, last=1))
    assert ours == called(lambda: model(rest, start_at_layer=1, stop_at_layer=2))


def test_a_past_is_not_changed_by_the_runs_it_serves(tiny, tokens):
    with torch.no_grad():
        _, states = models.run_with_past(tiny, tokens[:, :5])
        before = [state.past_keys.clone() for state in states]
        models.run_blocks(tiny, residual_before(tiny, tokens, 0)[:, 5:], 0, 3, past=dict(enumerate(states)))
    assert all(torch.equal(state.past_keys, keys) for state, keys in zip(states, before, strict=True))


@every_family
def test_run_blocks_passes_gradients_to_the_residual_states(tiny_model, tokens, family):
    model = tiny_model(family)
    with torch.no_grad():
        _, states = models.run_with_past(model, tokens)
        rest = residual_before(model, tokens, 1)[:, 6:]
    past = {layer: state.upto(6) for layer, state in enumerate(states)}
    direction = torch.randn(rest.shape, generator=torch.Generator().manual_seed(0))

    def score(step: torch.Tensor | float) -> torch.Tensor:
        return models.logits(model, models.run_blocks(model, rest + step * direction, 1, 3, past=past)[0]).sum()

    with models.frozen(model):
        step = torch.zeros((), requires_grad=True)
        (slope,) = torch.autograd.grad(score(step), step)
        difference = (score(1e-2) - score(-1e-2)) / 2e-2
    torch.testing.assert_close(slope, difference, rtol=2e-3, atol=2e-2)


# ---------------------------------------------------------------------------------------------------------- the rest


def test_frozen_parameters_ask_for_gradients_again_as_before(fresh):
    model = fresh()
    next(model.parameters()).requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    with models.frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert len(set(before)) == 2


def test_frozen_restores_after_an_exception(fresh):
    model = fresh()
    before = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="inside"), models.frozen(model):
        raise RuntimeError("inside")
    assert [parameter.requires_grad for parameter in model.parameters()] == before


def test_sampling_leaves_torchs_random_state_untouched(tiny, tokens):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    models.sample_text(tiny, tokens, new_tokens=4, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_the_seed_decides_the_sample_whatever_came_before(tiny, tokens):
    torch.manual_seed(1)
    first = models.sample_text(tiny, tokens, new_tokens=6, seed=3)
    torch.manual_seed(2)
    assert models.sample_text(tiny, tokens, new_tokens=6, seed=3) == first
    assert models.sample_text(tiny, tokens, new_tokens=6, seed=4) != first


def test_a_sample_for_each_row_without_its_prompt(tiny_model):
    model = tiny_model("llama", bos=True)
    prompt = model.to_tokens("The capital of France is").expand(5, -1)
    samples = models.sample_text(model, prompt, new_tokens=3, seed=0)
    assert len(samples) == 5
    assert not any(sample.startswith("The capital") for sample in samples)


@every_family
@torch.no_grad()
def test_written_tokens_are_drawn_from_the_most_probable_at_their_chances(tiny_model, tokens, family):
    """Against a plain loop over whole passes, for rows that are given to different lengths."""
    model, top_k = tiny_model(family), 3
    given = (torch.arange(12) < torch.tensor([4, 9, 1])[:, None]).long()
    chances = torch.rand(3, 12, generator=torch.Generator().manual_seed(1))
    written = models.write_on(model, tokens, given, chances=chances, top_k=top_k)
    for row, start in enumerate((4, 9, 1)):
        ids = tokens[row, :start].tolist()
        for place in range(start, 12):
            best = model(torch.tensor([ids]))[0, -1].topk(top_k)
            below = best.values.softmax(-1).cumsum(-1)
            ids.append(best.indices[int((below[:-1] <= chances[row, place]).sum())].item())
        assert written[row].tolist() == ids


def test_written_tokens_have_the_models_frequencies(tiny):
    """A thousand draws of one token come in the shares of the two most probable."""
    tokens, given = torch.tensor([[5, 0]]).expand(1000, 2), torch.tensor([[1, 0]]).expand(1000, 2)
    chances = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0))
    written = models.write_on(tiny, tokens, given, chances=chances, top_k=2)[:, 1]
    best = tiny(torch.tensor([[5]]))[0, -1].topk(2)
    assert set(written.tolist()) == set(best.indices.tolist())
    share = (written == best.indices[0]).double().mean().item()
    assert share == pytest.approx(best.values.softmax(-1)[0].item(), abs=0.05)


@torch.no_grad()
def test_top_one_sampling_is_greedy(tiny, tokens):
    greedy = tokens
    for _ in range(4):
        greedy = torch.cat([greedy, tiny(greedy)[:, -1:].argmax(-1)], dim=1)
    expected = tiny.tokenizer.batch_decode(greedy[:, 12:], skip_special_tokens=True)
    assert models.sample_text(tiny, tokens, new_tokens=4, seed=0, top_k=1) == expected


@pytest.mark.parametrize("layer", [-1, 3, 100])
def test_a_layer_out_of_range_is_told_with_the_range(tiny, layer):
    with pytest.raises(ValueError, match=rf"layer is {layer}, but gpt2 has layers 0 to 2\."):
        models.check_layer(tiny, layer)


def test_layers_in_range_pass(tiny):
    assert [models.check_layer(tiny, layer) for layer in range(3)] == [None] * 3


def test_true_is_no_layer(tiny):
    with pytest.raises(TypeError, match="layer is True, expected an int from 0 to 2"):
        models.check_layer(tiny, True)


@every_family
def test_the_output_matrix_is_the_parameter_itself(tiny_model, family):
    model = tiny_model(family)
    weight, matrix = models.find_output_matrix(model, 2).parameter, models.output_matrix(model, 2)
    (name,) = (name for name, parameter in model.named_parameters() if parameter is weight)
    assert re.search(r"\.2\.(_original_component\.)?mlp\.", name)  # Hugging Face's names in a Bridge
    assert matrix.data_ptr() == weight.data_ptr()
    assert matrix.shape == (model.cfg.d_mlp, model.cfg.d_model)


def test_a_layer_without_one_output_matrix_is_refused(fresh):
    model = fresh()
    del model.blocks[1].mlp
    with pytest.raises(ValueError, match="Layer 1 of gpt2 has no single MLP output matrix"):
        models.output_matrix(model, 1)


def test_the_prefix_is_bos_only_when_the_model_prepends_it(tiny_model):
    assert models.prefix_ids(tiny_model("gpt2")) == []
    assert models.prefix_ids(tiny_model("gpt2", bos=True)) == [0]


def test_embeddings_are_the_models_without_a_graph(tiny):
    assert models.embeddings(tiny).data_ptr() == tiny.embed.W_E.data_ptr()
    assert not models.embeddings(tiny).requires_grad
