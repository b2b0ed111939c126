"""Where a space stands between a prompt and its answer, and that every verb asks for the same tokens."""

import dataclasses

import pytest
import torch

import rome_lens as rl
from rome_lens.edit.search.suffix import tokenize_prompts
from rome_lens.evaluate.likelihood import mean_log_probabilities
from rome_lens.locate.prompt import prepare_prompt
from rome_lens.models.spacing import separator
from rome_lens.models.tokens import tokenize, tokenize_continuation
from tests.upstream import with_tokenizer

JOINED = """
法国的首都是|巴黎   法国的首都是|Paris   法国的首都是：|Paris   答案:|巴黎   成立于1998|年
成立于|1998   フランスの首都は「|パリ   เมืองหลวงของฝรั่งเศสคือ|ปารีส   the_motto_is_"|Rome
他说"|好   the_motto_is_“|Rome   Er_sagte_„|Rom   «|Rome   »|Rom   he_said_'|Rome   he_said_‘|Rome
(|Rome   [|Rome   It_costs_$|5   £|5   €|5   in_2020_$|5   Anglo-|Saxon   1939–|1945   minus_-|5
and/|or   @|user   #|tag   snake_|case   de_l'|Italie   de_l’|Italie   dell'|Italia   <answer>|Paris
**|Paris   x=|5   Rome|,_Italy   Rome|'s   Rome|’s   Rome|.   Rome|)   say_"Rome|"   Rome|-based
of_|Paris   of|_Paris
"""
SPACED = """
of|Paris   |Paris   答案:|Paris   The_capital_of_Japan_is|東京   he_said_"hi"|Rome   6'2"|tall
the_motto_“x”|Rome   Rome|.NET   Er_sagte_„Rom“|und   La_ville_de_«_Paris_»|est   »Rom«|ist
(x)|Rome   5_€|per   5€|per   London_-|Paris   the_dogs'|bone   the_dog’s|bone   Hugo's|Paris
say|"Rome"   is|-5   프랑스의_수도는|파리   คือ|Paris   Paris_is|ปารีส   a_>_b|Paris   **Paris**|is
x_=|5   Answer:|Rome   x[/INST]|a
"""


def pairs(table: str) -> list[tuple[str, str]]:
    """The prompts and answers of a table, whose underscores are spaces but for snake_ (_ before |)."""
    found = [entry.split("|") for entry in table.replace("snake_|", "snake\0|").split()]
    return [(a.replace("_", " ").replace("\0", "_"), b.replace("_", " ")) for a, b in found]


@pytest.mark.parametrize(("prompt", "answer"), pairs(JOINED))
def test_writing_has_no_space_here(prompt, answer):
    assert separator(prompt, answer) == ""


@pytest.mark.parametrize(("prompt", "answer"), pairs(SPACED))
def test_writing_has_a_space_here(prompt, answer):
    assert separator(prompt, answer) == " "


def test_a_choice_by_hand_counts():
    assert separator('"', "Rome", space=True) == " "
    assert separator("of ", "Rome", space=True) == separator("of", " Rome", space=True) == ""
    assert separator("of", "Rome", space=False) == ""


def test_no_space_follows_a_special_token(tiny):
    prompt = "one<|endoftext|>"
    text, start = tokenize_continuation(tiny, prompt, "Paris")
    assert text.text == "one<|endoftext|>Paris"
    assert text.ids[:start] == tokenize(tiny, prompt).ids
    assert separator("x[END]", "Paris", specials=["[END]"]) == ""


def merging(model, monkeypatch):
    """The model with a tokenizer that makes one token of a hyphen and the letter after it, as Llama 3's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate([*alphabet, "-S"])}
    made = Tokenizer(models.BPE(vocabulary, [("-", "S")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    with_tokenizer(monkeypatch, model, PreTrainedTokenizerFast(tokenizer_object=made))
    return model


def test_an_answer_does_not_take_the_prompts_last_token_with_it(tiny_model, monkeypatch):
    """Anglo- is read before Saxon is asked for, although running text has the token -S."""
    model = merging(tiny_model("gpt2"), monkeypatch)
    assert len(tokenize(model, "Anglo-Saxon").ids) == len("Anglo-Saxon") - 1
    text, start = tokenize_continuation(model, "Anglo-", "Saxon")
    assert text.ids[:start] == tokenize(model, "Anglo-").ids
    assert model.tokenizer.decode(text.ids[start:]) == "Saxon"
    assert [text.text[a:b] for a, b in text.offsets] == list("Anglo-Saxon")


ASKED = [('{} says: "', "Rome", None), ("{}的首都是", "罗马", None), ("{} of", "Rome", False), ('{} "', "Rome", True)]


@pytest.mark.parametrize(("prompt", "answer", "space"), ASKED)
def test_all_verbs_ask_for_the_same_tokens(tiny, prompt, answer, space):
    """Tracing, editing and scoring: what follows the prompt is the answer, with or without the same space."""
    fact = rl.Fact(prompt, "Rome", answer, space=space)
    request = rl.EditRequest(prompt, "Rome", answer, space=space)
    text, start = tokenize_continuation(tiny, fact.text, answer, space=space)
    wanted = text.ids[start:]
    assert tuple(prepare_prompt(tiny, fact).answer.tolist()) == wanted
    prompts = tokenize_prompts(tiny, request, ["{}", 'An open " mark. {}'])
    assert prompts.target == wanted
    assert all(row[len(row) - len(wanted) + 1 :] == wanted[:-1] for row in prompts.rows[:2])
    record = rl.EditRecord(request, "Paris", paraphrase_prompts=(fact.text,))
    scores = rl.evaluate.score_record(tiny, record)
    asked = [rl.data.Continuation(fact.text, target, space=space) for target in (answer, "Paris")]
    new, true = mean_log_probabilities(tiny, asked).double().exp().tolist()
    assert scores["EM"] == scores["PM"] == pytest.approx(new - true)


def test_the_choice_is_saved_with_an_edit(tiny, tmp_path):
    request = rl.EditRequest("{} of", "Rome", "Paris", space=False)
    update = rl.edit.Update(1, torch.ones(tiny.cfg.d_mlp, 1), torch.ones(1, tiny.cfg.d_model))
    rl.Edit((update,), (request,)).save(tmp_path / "a.safetensors")
    assert rl.Edit.load(tmp_path / "a.safetensors").requests == (request,)


def test_a_choice_that_is_no_choice_is_refused():
    with pytest.raises(TypeError):
        rl.Fact("{} of", "Rome", space="no")


def test_correct_is_decided_by_tokens(tiny):
    """An answer that only lacks the space of what the model says is another answer."""
    prompt = rl.Fact("In Italy, {} is located in the city of", "The Colosseum")
    made = rl.causal_trace(tiny, prompt, samples=2, progress=False)
    assert made.is_correct
    assert rl.CausalTrace.from_dict(made.to_dict()).is_correct
    assert not dataclasses.replace(made, answer_tokens=(made.predicted_token + 1,)).is_correct
    spaced, joined = (dataclasses.replace(prompt, answer=" x", space=space) for space in (None, False))
    assert prepare_prompt(tiny, spaced).answer.tolist() == prepare_prompt(tiny, joined).answer.tolist()
    with pytest.warns(UserWarning, match=r"does not predict 'Rome' after .* but '"):
        rl.causal_trace(tiny, dataclasses.replace(prompt, answer="Rome", space=False), samples=2, progress=False)


@pytest.mark.smollm2
def test_smollm2_says_a_word_without_a_space_after_an_opening_quote(smollm2):
    prompt = 'The capital of France is called "'
    joined, apart = (rl.data.Continuation(prompt, "Paris", space=space) for space in (None, True))
    without, within = mean_log_probabilities(smollm2, [joined, apart]).exp().tolist()
    assert without > 20 * within
