"""Fluency and consistency: against cases computed by hand; and texts that are the model's own, drawn by the seed."""

import math
import sys
import unicodedata

import pytest
import torch

import rome_lens as rl
from rome_lens.evaluate.scorers import generation
from rome_lens.evaluate.scorers.generation import consistency, ngram_entropy, split_words
from rome_lens.models.tokens import tokenize
from tests.edit.artifact.test_edit import made_up

PROMPTS = ["The Eiffel Tower is in", "Rome is", "The capital of France is", "The Eiffel Tower is in"]
RECORD = rl.EditRecord(
    request=rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target="Rome"),
    target_true="Paris",
    generation_prompts=tuple(PROMPTS),
    relation="P131",
    target_id="Q220",
)
SNIPPETS = rl.data.AttributeSnippets(
    {
        ("P131", "Q220"): (("Colosseum", "The Colosseum is in Rome."), ("Pantheon", "The Pantheon stands in Rome.")),
        ("P131", "Q90"): (("The Eiffel Tower", "The Eiffel Tower is in Paris."), ("Louvre", "It is in Paris.")),
        ("P31", "Q1"): (("The Eiffel Tower", "The Eiffel Tower is a tower of iron. " * 20),),
    }
)


def test_entropy_of_texts_worked_out_by_hand():
    """(2/3 H2 + 4/3 H3) / 2, in bits, as the released code weighs them."""
    assert ngram_entropy("a b c d e") == pytest.approx((2 / 3 * math.log2(4) + 4 / 3 * math.log2(3)) / 2)
    # a b a b a: pairs ab, ba, ab, ba (1 bit); triples aba, bab, aba (shares 2/3 and 1/3)
    triples = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy("a b a b a") == pytest.approx((2 / 3 * 1 + 4 / 3 * triples) / 2)
    assert ngram_entropy("ha " * 50) == 0


@pytest.mark.parametrize("text", ["", "one", "one two"])
def test_a_text_without_pairs_or_triples_has_no_entropy(text):
    assert ngram_entropy(text) == 0


def test_a_text_of_three_words_has_the_entropy_of_its_pairs():
    assert ngram_entropy("one two three") == pytest.approx((2 / 3 * math.log2(2)) / 2)


def test_words_and_punctuation_marks_are_told_apart():
    words = ["Rome", "'s", "well-known", "1,000", "cats", ".", "¿", "Über", "!"]
    assert split_words("Rome's well-known 1,000 cats. ¿Über!") == words


def test_consistency_worked_out_by_hand():
    """Two documents, {rome, city} and {rome, river}: idf(rome) = 1, idf of the others = ln(3/2) + 1 = w."""
    snippets = rl.data.AttributeSnippets({("P1", "Q1"): (("a", "Rome city"),), ("P1", "Q2"): (("b", "Rome river"),)})
    vectorizer = rl.evaluate.ReferenceTexts.fit(snippets).vectorizer
    w = math.log(3 / 2) + 1
    assert consistency(["ROME!", "city x"], ["Rome river"], vectorizer) == pytest.approx(1 / (1 + w**2))
    # "Rome Rome city" has the vector (2, w)
    expected = (2 + w**2) / math.sqrt((4 + w**2) * (1 + w**2))
    assert consistency(["Rome", "Rome city"], ["Rome", "city"], vectorizer) == pytest.approx(expected)
    assert consistency(["city"], ["river"], vectorizer) == 0
    assert consistency(["unheard of"], ["river"], vectorizer) == 0
    assert consistency(["city Rome"], ["Rome city"], vectorizer) == pytest.approx(1)


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
def test_texts_begin_with_their_prompts_and_have_the_length_asked_for(tiny_model, family, bos):
    """Greedy choice (top_k 1) makes the text known: it is what a plain loop over the logits writes."""
    model = tiny_model(family, bos=bos)
    texts = rl.evaluate.generate_texts(model, PROMPTS, length=20, top_k=1)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = list(tokenize(model, prompt).ids)
        while len(ids) < 20:
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        plain = model.tokenizer.decode(ids, skip_special_tokens=True)
        assert text == unicodedata.normalize("NFKD", plain).replace("\n\n", " ")


def test_the_seed_draws_the_texts_and_torchs_own_state_stays(tiny):
    before = torch.random.get_rng_state()
    texts = rl.evaluate.generate_texts(tiny, PROMPTS, length=30, seed=1)
    assert rl.evaluate.generate_texts(tiny, PROMPTS, length=30, seed=1) == texts
    assert rl.evaluate.generate_texts(tiny, PROMPTS, length=30, seed=2) != texts
    assert texts[0] != texts[3], "the same prompt twice is drawn twice"
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_text_does_not_depend_on_the_other_prompts(tiny):
    """Alone or among longer and shorter ones, in whatever order and batches."""
    together = rl.evaluate.generate_texts(tiny, PROMPTS, length=30, seed=4)
    assert [rl.evaluate.generate_texts(tiny, [prompt], length=30, seed=4)[0] for prompt in PROMPTS[:3]] == together[:3]
    assert rl.evaluate.generate_texts(tiny, PROMPTS[::-1], length=30, seed=4)[1:3] == together[1:3][::-1]
    assert rl.evaluate.generate_texts(tiny, PROMPTS, length=30, seed=4, tokens_per_batch=30) == together


def test_batches_hold_no_more_than_asked_and_give_every_prompt_its_text(tiny, monkeypatch):
    sizes = []
    plain = generation.write_on

    def counted(model, tokens, *rest, **options):
        sizes.append(tuple(tokens.shape))
        return plain(model, tokens, *rest, **options)

    monkeypatch.setattr(generation, "write_on", counted)
    texts = rl.evaluate.generate_texts(tiny, PROMPTS * 2, length=30, tokens_per_batch=60)
    assert max(rows for rows, _ in sizes) == 2
    assert sum(rows for rows, _ in sizes) == 8
    assert all(text.startswith(prompt) for prompt, text in zip(PROMPTS * 2, texts, strict=True))


def test_a_records_scores_are_those_of_its_texts(tiny):
    references = rl.evaluate.ReferenceTexts.fit(SNIPPETS)
    scores = rl.evaluate.score_generation(tiny, RECORD, references=references, length=30, seed=3)
    texts = rl.evaluate.generate_texts(tiny, PROMPTS, length=30, seed=3)
    assert scores["GE"] == pytest.approx(sum(map(ngram_entropy, texts)) / 4)
    about = ["The Colosseum is in Rome.", "The Pantheon stands in Rome."]
    assert scores["RS"] == consistency(texts, about, references.vectorizer)


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
@torch.no_grad()
def test_essence_is_the_perplexity_of_the_first_texts_about_the_subject(tiny_model, family, bos):
    """One plain pass over 100 tokens, whatever relation and object the texts stand under."""
    model = tiny_model(family, bos=bos)
    record = rl.EditRecord(RECORD.request, "Paris")
    scores = rl.evaluate.score_generation(model, record, references=rl.evaluate.ReferenceTexts.fit(SNIPPETS))
    text = "The Eiffel Tower is in Paris. " + "The Eiffel Tower is a tower of iron. " * 20
    tokens = model.to_tokens(text, prepend_bos=bos)[:, : 100 + bos]
    log_probs = model(tokens)[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])
    assert scores == {"essence": pytest.approx((-log_probs).mean().exp().item(), rel=1e-4)}


def test_scores_that_lack_prompts_or_references_are_left_out(tiny):
    references = rl.evaluate.ReferenceTexts.fit(SNIPPETS)
    bare = rl.EditRecord(rl.EditRequest("{} is in", "The Space Needle", target="Rome"), "Seattle")
    assert rl.evaluate.score_generation(tiny, bare, references=references) == {}
    assert set(rl.evaluate.score_generation(tiny, RECORD, length=20)) == {"GE"}
    elsewhere = rl.EditRecord(bare.request, "Seattle", generation_prompts=("Rome is",), relation="P9", target_id="Q220")
    assert set(rl.evaluate.score_generation(tiny, elsewhere, references=references, length=20)) == {"GE"}


def test_score_edits_gives_rows_that_summarize_reads(tiny):
    frame = rl.score_edits(
        tiny,
        [RECORD],
        {"rome": lambda *_: made_up(tiny)},
        score=lambda model, record: rl.evaluate.score_generation(model, record, length=20),
        progress=False,
    )
    summary = rl.summarize(frame).set_index("method")
    assert list(summary.columns) == ["protocol", "n", "failed", "GE", "GE_low", "GE_high"]
    assert list(summary.index) == ["base", "rome"]


def test_what_cannot_be_generated_is_refused(tiny):
    with pytest.raises(ValueError, match="length is 200, but gpt2 reads at most 128"):
        rl.evaluate.generate_texts(tiny, PROMPTS, length=200)
    with pytest.raises(ValueError, match=r"has \d+ tokens, expected fewer than length \(3\)"):
        rl.evaluate.generate_texts(tiny, PROMPTS, length=3)
    with pytest.raises(ValueError, match="expected a list of one text or more"):
        rl.evaluate.generate_texts(tiny, [])


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(rl.errors.UnavailableError, match=r"rome-lens\[evaluation\]"):
        rl.evaluate.ReferenceTexts.fit(SNIPPETS)
