"""A model on a GPU, or spread over several, gives the numbers of the CPU; and nothing in the package names a device."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rome_lens as rl
from rome_lens.models.kinds import HAS_HOOKED, HookedTransformer
from tests.conformance.test_families import FACT, NOISE, covariance, edit

gpus = torch.cuda.device_count()


def same_numbers(one, other) -> None:
    for kind in ("resid", "mlp", "attn"):
        options = {"kind": kind, "samples": 2, "corruption": NOISE, "progress": False}
        for method in ("exact", "attribution"):
            grids = [rl.causal_trace(model, FACT, method=method, **options).restored for model in (one, other)]
            torch.testing.assert_close(*grids, atol=1e-4, rtol=0)
    torch.testing.assert_close(*(covariance(model).second_moment for model in (one, other)), atol=1e-4, rtol=1e-3)
    deltas = [(found.updates[0].left @ found.updates[0].right).flatten() for found in map(edit, (one, other))]
    assert torch.cosine_similarity(*deltas, dim=0) > 0.999
    records = rl.load_builtin_records()[:1]
    found = edit(one)
    for score in (rl.evaluate.score_record, rl.evaluate.score_specificity):
        with found.applied(one), found.applied(other):
            assert score(one, records[0]) == pytest.approx(score(other, records[0]), abs=1e-4)
    prompts = [FACT.text]
    compared = [rl.compare_models(model, found, prompts, progress=False).divergence["kl"] for model in (one, other)]
    assert compared[0].tolist() == pytest.approx(compared[1].tolist(), abs=1e-4)
    assert rl.evaluate.generate_texts(one, prompts, length=20) == rl.evaluate.generate_texts(other, prompts, length=20)


@pytest.mark.skipif(gpus < 1, reason="needs a GPU")
def test_a_model_on_a_gpu_gives_the_same_numbers(tiny_folder):
    same_numbers(*(rl.load_model(tiny_folder("gpt2"), device=device) for device in ("cpu", "cuda")))


@pytest.mark.skipif(gpus < 2 or not HAS_HOOKED, reason="needs two GPUs, and HookedTransformer")
def test_a_model_on_two_gpus_gives_the_same_numbers(tiny_folder):
    plain = rl.load_model(tiny_folder("gpt2"), device="cpu")
    spread = HookedTransformer(replace(plain.cfg, device="cuda", n_devices=2), plain.tokenizer)
    spread.load_state_dict(plain.state_dict())
    assert len({parameter.device for parameter in spread.parameters()}) == 2
    same_numbers(plain, spread.eval())


def test_nothing_names_a_device():
    """But for what only a CPU needs: a copy on it, a question whether it is one, and torch's own default."""
    allowed = re.compile(r'type == "cpu"|device: str \| torch\.device = "cpu"|^_DEFAULT = torch\.device\("cpu"\)')
    files = Path(rl.__file__).parent.rglob("*.py")
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    named = [line for line in lines if re.search(r"""["'](cuda|mps|cpu)\b""", line) and not allowed.search(line)]
    assert named == []
