"""Arguments of analyses, for a tiny model."""

import json
from pathlib import Path

import pytest

import rome_lens as rl
from rome_lens.plots import saving
from tests.analyses.cases import TRACE, known
from tests.edit.methods.test_rome import covariance_of


@pytest.fixture
def given(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Arguments that name a tiny model's facts, records without, and with, a covariance. No browser is started."""
    load = rl.load_model
    monkeypatch.setattr(rl, "load_model", lambda name, **options: load(name, **options) if options else tiny)
    monkeypatch.setattr(saving, "_drawn", lambda figure, suffixes, inches: dict.fromkeys(suffixes, b"drawn"))
    facts, records = [], []
    for number, fact in enumerate(known(tiny)):
        facts.append({"prompt": fact.text, "subject": fact.subject, "attribute": fact.answer})
        records.append(
            {
                "case_id": number,
                "requested_rewrite": {
                    "prompt": fact.prompt,
                    "subject": fact.subject,
                    "target_new": {"str": "Rome"},
                    "target_true": {"str": fact.answer},
                },
                "paraphrase_prompts": [f"One, two. {fact.subject} is in"],
                "neighborhood_prompts": ["The capital of France is", "The mother tongue of Dante is"],
                "attribute_prompts": [],
                "generation_prompts": [f"{fact.subject} is", f"The city of {fact.subject} is"],
            }
        )
    for name, content in (("facts", facts), ("records", records)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    covariance_of(tiny).save(tmp_path / "covariance.safetensors")
    out = ["--out", str(tmp_path / "out")]
    plain = [*out, "--records", str(tmp_path / "records.json")]
    return {
        "facts": [*out, "--facts", str(tmp_path / "facts.json"), *TRACE],
        "plain": plain,
        "records": [*plain, "--covariance", str(tmp_path / "covariance.safetensors")],
    }


@pytest.fixture
def covariances(given, tiny, tmp_path) -> list[str]:
    """Arguments that name a folder with a covariance for each layer."""
    for layer in range(tiny.cfg.n_layers):
        covariance_of(tiny, layer).save(tmp_path / "covariances" / f"layer{layer}.safetensors")
    return ["--covariances", str(tmp_path / "covariances")]
