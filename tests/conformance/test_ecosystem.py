"""Edited models pass through what others do with models."""

import copy
import importlib.util
import io

import pytest
import torch
from transformer_lens import patching

import rome_lens as rl
from rome_lens import models
from tests.conformance.conftest import KINDS
from tests.conformance.test_families import FACT, edit, trace
from tests.tiny import CORPUS

TOKENS = torch.arange(1, 11)[None]
every_kind = pytest.mark.parametrize("kind", KINDS)
sae_lens = pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="sae-lens is not installed here")


@every_kind
@torch.no_grad()
def test_an_edited_model_is_cached_and_patched(made, kind):
    model = made("gpt2", kind)
    found = edit(model)
    _, before = model.run_with_cache(TOKENS)
    with found.applied(model):
        logits, cache = model.run_with_cache(TOKENS)
        torch.testing.assert_close(logits, model(TOKENS))
        torch.testing.assert_close(cache["blocks.0.hook_resid_post"], before["blocks.0.hook_resid_post"])
        assert not torch.allclose(cache["blocks.1.hook_mlp_out"], before["blocks.1.hook_mlp_out"], atol=1e-3)
        grid = patching.get_act_patch_resid_pre(model, TOKENS, before, lambda logits: logits[0, -1, 7])
    assert grid.shape == (3, 10)
    torch.testing.assert_close(grid[0], logits[0, -1, 7].expand(10), atol=1e-4, rtol=0)  # nothing differs before


@every_kind
@torch.no_grad()
def test_an_edited_model_generates(made, kind):
    model = made("gpt2", kind)
    with edit(model).applied(model):
        found = model.generate(TOKENS, max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False)
        expected = TOKENS
        for _ in range(3):
            expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, expected)


@every_kind
@torch.no_grad()
def test_an_edited_model_is_saved_copied_and_loaded(made, kind):
    model = made("gpt2", kind)
    with edit(model).applied(model):
        expected = model(TOKENS)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(TOKENS), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(TOKENS), expected, atol=1e-3)
    file.seek(0)
    copied.load_state_dict(model.state_dict())
    torch.testing.assert_close(copied(TOKENS), model(TOKENS), atol=1e-5, rtol=1e-5)
    copied.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(copied(TOKENS), expected, atol=1e-5, rtol=1e-5)


@every_kind
@torch.no_grad()
def test_a_copy_is_edited_by_itself(made, kind):
    model = made("llama-gqa", kind)
    copied = copy.deepcopy(model)
    before = model(TOKENS)
    edit(model).apply(copied)
    assert not torch.allclose(copied(TOKENS), before, atol=1e-3)
    assert torch.equal(model(TOKENS), before)


@every_kind
def test_an_edit_is_a_plain_dict_of_tensors(made, kind):
    model = made("llama-gqa", kind)
    found = edit(model)
    delta = found.to_state_dict_delta(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with found.applied(model):
        after = {name: value.clone() for name, value in model.state_dict().items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(delta)
    for name, value in delta.items():
        torch.testing.assert_close(before[name] + value, after[name], atol=1e-6, rtol=1e-5)


@every_kind
def test_fine_tuning_works_and_its_change_is_found_again(made, kind):
    model = copy.deepcopy(made("llama-gqa", kind))
    request = rl.EditRequest(FACT.prompt, FACT.subject, target="Rome")
    config = rl.edit.FinetuneConfig(layers=(1,), steps=3)
    found = rl.edit.finetune(model, request, config=config, progress=False, on_unhealthy="ignore")
    original = copy.deepcopy(model)
    assert not any(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())
    found.apply(model)
    (update,) = rl.evaluate.recover_updates(original, model, progress=False)
    expected = found.updates[0].left @ found.updates[0].right
    torch.testing.assert_close(update.left @ update.right, expected, atol=1e-3, rtol=1e-2)


def test_an_encoder_and_decoder_is_refused(tmp_path):
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    from tests.tiny import save_tokenizer

    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4, "vocab_size": 384}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0)
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model = TransformerBridge.boot_transformers(
        str(tmp_path),
        hf_model=transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path),
        tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path),
        device="cpu",
    )
    with pytest.raises(ValueError, match="has an encoder and a decoder"):
        rl.causal_trace(model, FACT)
    with pytest.raises(ValueError, match="has an encoder and a decoder"):
        rl.collect_covariance(model, [0], texts=CORPUS, tokens=10)


@sae_lens
@pytest.mark.skipif("hooked" not in KINDS, reason="SAELens' class is made of HookedTransformer")
def test_a_model_of_sae_lens_is_traced_and_edited(made):
    from sae_lens import HookedSAETransformer

    plain = made("gpt2", "hooked")
    model = HookedSAETransformer(plain.cfg, plain.tokenizer, move_to_device=False)
    model.load_state_dict(plain.state_dict())
    model.eval()
    torch.testing.assert_close(trace(model, "mlp").restored, trace(plain, "mlp").restored, atol=1e-5, rtol=0)
    found = edit(model)
    expected = edit(plain)
    torch.testing.assert_close(found.updates[0].right, expected.updates[0].right, atol=1e-3, rtol=1e-2)
    with found.applied(model), found.applied(plain):
        torch.testing.assert_close(model(TOKENS), plain(TOKENS), atol=1e-4, rtol=0)


def test_the_pass_through_a_bridge_leaves_no_trace(made):
    """Blocks that were passed over run again afterwards, also when a hook raised in between."""
    model = made("gpt2", "bridge")
    with torch.no_grad():
        before = model(TOKENS)
        residual = models.run(model, TOKENS, stop_at_layer=1)

    def fail(value: torch.Tensor, hook: object) -> None:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), model.hooks(fwd_hooks=[("blocks.2.hook_mlp_out", fail)]):
        models.run_blocks(model, residual, 1, 3)
    assert all("forward" not in vars(block) for block in model.blocks)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    with torch.no_grad():
        assert torch.equal(model(TOKENS), before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("bridge")])
def test_the_layout_of_a_bridge_is_left_alone(made, kind):
    model = made("llama-gqa", kind)
    before = {name: (parameter.data_ptr(), parameter.stride()) for name, parameter in model.named_parameters()}
    assert rl.models.optimize_layout(model) is model
    after = {name: (parameter.data_ptr(), parameter.stride()) for name, parameter in model.named_parameters()}
    assert after == before
