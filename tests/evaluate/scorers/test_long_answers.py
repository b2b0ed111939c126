"""Scores of passages: what each figure counts, and what is compared with what."""

import json
import shutil

import pytest
import torch
from nltk.translate.bleu_score import sentence_bleu
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import rome_lens as rl
from rome_lens.evaluate.scorers import long_answers

PASSAGE = "The Eiffel Tower is in Paris, and the Colosseum is in Rome."


def test_recall_counts_what_of_the_passage_is_there_and_bleu_what_is_written():
    whole = rl.evaluate.text_overlap(PASSAGE, PASSAGE)
    assert list(whole.values()) == pytest.approx([1.0] * 5)
    half = rl.evaluate.text_overlap(PASSAGE, "The Eiffel Tower is in Paris")
    assert (half["rouge1"], half["rouge2"], half["rougeL"]) == pytest.approx((6 / 12, 5 / 11, 6 / 12))
    longer = rl.evaluate.text_overlap(PASSAGE, f"{PASSAGE} {PASSAGE}")
    assert longer["rougeL"] == pytest.approx(1)
    assert longer["bleu_words"] < 0.7
    mixed = rl.evaluate.text_overlap(PASSAGE, " ".join(reversed(PASSAGE.split())))
    assert mixed["rouge1"] == pytest.approx(1)
    assert mixed["rougeL"] < 0.5
    assert mixed["bleu_words"] < 0.2 < mixed["bleu"] == sentence_bleu([PASSAGE], " ".join(reversed(PASSAGE.split())))
    assert set(rl.evaluate.text_overlap(PASSAGE, "").values()) == {0.0}


def test_each_question_is_compared_with_its_own_answer_without_special_tokens(tiny, monkeypatch):
    said = {"Where?": PASSAGE, "In which place?": "The Eiffel Tower", "And Rome?": "Rome", "Who?": "Nobody"}
    monkeypatch.setattr(
        long_answers,
        "generate_answers",
        lambda model, prompts, **_: [rl.evaluate.Answer(said[prompt], ()) for prompt in prompts],
    )
    record = rl.data.QuestionRecord(
        rl.EditRequest("{}", "Where?", target=PASSAGE + tiny.tokenizer.eos_token),
        ("In which place?",),
        portability={"sub_question": (rl.data.Question("And Rome?", "Rome"),)},
        locality={"other": (rl.data.Question("Who?", PASSAGE),), "unanswered": (rl.data.Question("What?", ""),)},
    )
    scores = rl.evaluate.score_long_answers(tiny, record, encoder=lambda texts: torch.eye(2))
    recall = {name: value for name, value in scores.items() if name.endswith("rouge1")}
    assert recall == {
        "efficacy_rouge1": pytest.approx(1.0),
        "paraphrase_rouge1": pytest.approx(3 / 12),
        "portability_sub_question_rouge1": pytest.approx(1.0),
        "locality_other_rouge1": 0.0,
    }
    assert scores["efficacy_cosine"] == 0.0


def test_an_encoder_gives_each_text_the_same_vector_whatever_is_beside_it(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    encode = rl.evaluate.sentence_encoder(tmp_path)
    short, long = encode(["Rome", PASSAGE])
    assert torch.allclose(encode(["Rome"])[0], short, atol=1e-5)
    assert short.norm() == pytest.approx(1, abs=1e-5)
    assert short @ long < 0.99


def spoil_code(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "other", "auto_map": {"AutoModel": "modeling.Other"}})
    )


def spoil_weights(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("spoil", [spoil_code, spoil_weights, lambda folder: (folder / "model.safetensors").unlink()])
def test_an_encoder_runs_no_code_and_needs_all_of_its_weights(tiny_folder, tmp_path, spoil):
    shutil.copytree(tiny_folder("llama"), tmp_path / "encoder")
    spoil(tmp_path / "encoder")
    with pytest.raises(rl.errors.FormatError, match=r"code|up_proj|no weights"):
        rl.evaluate.sentence_encoder(tmp_path / "encoder")
