"""Where analyses take ROME's covariance from."""

import argparse
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import rome_lens as rl
from analyses import table4_counterfact
from analyses.common.options import add_covariance_arguments, rome_covariance
from rome_lens.edit.covariance.shipped import SHIPPED_COVARIANCES
from tests import tiny as models


def options(*argv: str) -> argparse.Namespace:
    arguments = argparse.ArgumentParser()
    add_covariance_arguments(arguments)
    return arguments.parse_args(argv)


guessed = pytest.mark.filterwarnings("ignore:.*are a guess")  # layer 1 of 3, from GPT-2 medium's 8 of 24


@guessed
def test_table4_of_a_model_without_a_covariance_collects_one_of_the_suggested_layer(given, tiny, tmp_path):
    """And keeps it: a second run needs no text."""
    (tmp_path / "corpus.txt").write_text(models.CORPUS * 20)
    folder = ["--covariances", str(tmp_path / "covariances")]
    asked = [*given["plain"], "--count", "1", "--method", "rome", *folder]
    table4_counterfact.main([*asked, "--texts", str(tmp_path / "corpus.txt"), "--tokens", "200"])
    assert list(pd.read_csv(tmp_path / "out" / "table.csv")["method"]) == ["base", "rome"]
    kept = rome_covariance(tiny, options(*folder))
    assert (kept.layer, kept.tokens) == (1, 200)


def test_a_covariance_that_is_given_goes_first(tiny, tmp_path):
    rl.KeyCovariance.from_matrix(torch.eye(128), layer=2, tokens=10).save(tmp_path / "covariance.safetensors")
    assert rome_covariance(tiny, options("--covariance", str(tmp_path / "covariance.safetensors"))).layer == 2


@guessed
def test_covariances_are_of_what_the_model_answers_where_that_should_stay(tiny, tmp_path):
    """Of all that it answers, as it goes on, and of no more than was asked for."""
    prompts, path = ["Go on.", "Why so?"], tmp_path / "instructions.json"
    path.write_text(json.dumps([{"instruction": prompt} for prompt in prompts]))
    written = rl.evaluate.generate_answers(tiny, prompts, new_tokens=120, stops=())
    texts = [prompt + tiny.tokenizer.decode(each.tokens) for prompt, each in zip(prompts, written, strict=True)]
    held = sum(len(tiny.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    for asked, tokens in (("100000", held), ("50", 50)):
        given = ["--own-answers", str(path), "--tokens", asked, "--covariances", str(tmp_path / asked)]
        found = rome_covariance(tiny, options(*given))
        alone = rl.collect_covariance(tiny, [1], texts=texts, tokens=tokens, progress=False)[1]
        assert (found.tokens, found.corpus) == (tokens, "gpt2's answers to instructions.json")
        torch.testing.assert_close(found.second_moment, alone.second_moment)


@guessed
def test_a_covariance_of_something_else_is_not_taken_for_one_of_own_answers(tiny, tmp_path, monkeypatch, capsys):
    """Neither one that ships or is kept in the folder, nor that of a text given besides."""
    (tmp_path / "instructions.json").write_text('[{"instruction": "Go on."}]')
    asked = ["--own-answers", str(tmp_path / "instructions.json"), "--covariances", str(tmp_path)]
    monkeypatch.setitem(SHIPPED_COVARIANCES, "gpt2", "gpt2.safetensors")
    for corpus in ("", "other.txt", "gpt2's answers to others.json"):
        kept = rl.KeyCovariance.from_matrix(torch.eye(128), layer=1, tokens=10, corpus=corpus)
        kept.save(tmp_path / "layer1.safetensors", overwrite=True)
        with pytest.raises(
            rl.errors.CovarianceError, match="expected gpt2's answers to instructions.json. Give another"
        ):
            rome_covariance(tiny, options(*asked))
    with pytest.raises(SystemExit):
        options(*asked, "--texts", "corpus.txt")
    assert "--texts: not allowed with argument --own-answers" in capsys.readouterr().err


@guessed
def test_without_a_text_or_a_network_a_sentence_says_what_to_do(tiny, tmp_path: Path):
    with pytest.raises(rl.errors.UnavailableError, match="Salesforce/wikitext.*Connect"):
        rome_covariance(tiny, options("--covariances", str(tmp_path)))


def test_a_model_without_a_known_layer_is_refused(tiny_model, tmp_path: Path):
    with pytest.raises(ValueError, match="No rome preset is known for 'opt'"):
        rome_covariance(tiny_model("opt"), options("--covariances", str(tmp_path)))
