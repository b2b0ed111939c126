"""A model on a GPU, or spread over several, gives the numbers of the CPU; and nothing in the package names a device."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rome_lens as rl
from analyses.common.methods import BATCH
from rome_lens.models.kinds import HookedTransformer
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


@pytest.mark.skipif(gpus < 1, reason="needs a GPU")
def test_every_method_on_a_gpu_gives_the_same_edit(tiny_folder):
    requests = [
        rl.EditRequest("{} is in", subject, target) for subject, target in (("Rome", " red"), ("Paris", " blue"))
    ]
    deltas: dict[str, list[torch.Tensor]] = {}
    for device in ("cpu", "cuda"):
        model = rl.load_model(tiny_folder("gpt2"), device=device)
        known = rl.collect_covariance(model, [0, 1], texts="The tower is in Rome. " * 90, tokens=400, progress=False)
        known = {layer: each.shrunk() for layer, each in known.items()}
        options = {"covariances": known, "preserve": ["The tower is in"], "on_unhealthy": "ignore", "progress": False}
        found = {}
        for name, (method, config) in BATCH.items():
            everything = {"null_space_threshold": 1e9} if name == "alphaedit" else {}
            used = config(contexts=("{}",), layers=[0, 1], **everything)
            found[name] = method(model, requests, config=used, **options)
        ledger = rl.edit.EditLedger(model, covariances={1: known[1]}, config=rl.RomeConfig(contexts=("{}",)))
        with pytest.warns(rl.errors.EditWarning, match="nearly full"):
            ledger.add(requests, preserve=["The tower is in"], progress=False)
        found["ledger"] = ledger.edit(on_unhealthy="ignore")
        assert (ledger.to_frame()["residual"] < 1e-4).all()
        found["ultraedit"] = rl.edit.ultraedit(model, requests, on_unhealthy="ignore", progress=False)
        for name, each in found.items():
            deltas.setdefault(name, []).append(torch.cat([(u.left @ u.right).flatten() for u in each.updates]))
    for name, (one, other) in deltas.items():
        assert torch.cosine_similarity(one, other, dim=0) > 0.999, name


@pytest.mark.hooked
@pytest.mark.skipif(gpus < 2, reason="needs two GPUs")
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
