"""Texts become the tokens that the model's own to_tokens gives, with the characters they cover."""

from itertools import chain

import pytest
import torch

import rome_lens as rl
from rome_lens.models import pad, tokens
from rome_lens.models.tokens import TokenizedText, spaced, tokenize, tokenize_continuation
from tests.tiny import CORPUS

TEXTS = [
    "The Eiffel Tower is located in the city of",
    " leading space",
    "trailing space ",
    "two  spaces\n\nand lines\t",
    "L'Équipe, São Tomé",
    "東京タワー",
    "👩‍🚀 and 🇫🇷",
    "Jose\u0301 12345",
    "<|endoftext|>Paris",
    "a",
]
TWO_BOS = pytest.mark.filterwarnings("ignore:The prompt .* begins with")
PROMPTS = ["The capital of France is", "東京", "They say:", "Victor Hugo's", "L'Équipe,"]


@TWO_BOS
@pytest.mark.parametrize("prepend", [False, True])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_to_tokens(tiny_model, monkeypatch, text, bos, prepend):
    model = tiny_model("llama", bos=bos)
    monkeypatch.setattr(model.cfg, "default_prepend_bos", prepend)
    assert list(tokenize(model, text).ids) == model.to_tokens(text)[0].tolist()


@TWO_BOS
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_offsets_cover_every_character_in_order(tiny_model, text, bos):
    tokenized = tokenize(tiny_model("gpt2", bos=bos), text)
    offsets = tokenized.offsets[1:] if bos else tokenized.offsets
    assert len(tokenized.offsets) == len(tokenized.ids)
    assert {i for start, end in offsets for i in range(start, end)} == set(range(len(text)))
    assert list(offsets) == sorted(offsets)


def test_bos_covers_no_character(tiny_model):
    tokenized = tokenize(tiny_model("llama", bos=True), "Paris")
    assert tokenized.ids[0] == 0
    assert tokenized.offsets[0] == (0, 0)


@pytest.mark.parametrize(
    ("start", "end", "positions"),
    [(0, 3, range(1, 2)), (2, 4, range(1, 3)), (3, 7, range(2, 3)), (0, 99, range(1, 4)), (4, 5, range(2, 3))],
)
def test_covering_gives_the_tokens_that_hold_any_of_the_characters(start, end, positions):
    text = TokenizedText("abc def ghi", (0, 1, 2, 3), ((0, 0), (0, 3), (3, 7), (7, 11)))
    assert text.covering(start, end) == positions


def test_covering_no_characters_gives_no_tokens():
    text = TokenizedText("abc", (0, 1), ((0, 0), (0, 3)))
    assert len(text.covering(3, 9)) == 0


def test_a_text_that_fills_the_context_exactly_is_read(tiny):
    assert len(tokenize(tiny, "!" * 128).ids) == tiny.cfg.n_ctx


def test_bos_counts_towards_the_context(tiny_model):
    model = tiny_model("gpt2", bos=True)
    with pytest.raises(ValueError, match="has 129 tokens, but gpt2 reads at most 128"):
        tokenize(model, "!" * 128)


@pytest.mark.parametrize(
    ("prompt", "continuation", "expected"),
    [("of", "Paris", " Paris"), ("of ", "Paris", "Paris"), ("of\n", "Paris", "Paris"), ("of", " Paris", " Paris")],
)
def test_a_continuation_is_separated_by_one_space(prompt, continuation, expected):
    assert spaced(prompt, continuation) == expected


def test_a_continuation_of_nothing_gets_a_leading_space():
    assert spaced("", "Paris") == " Paris"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("continuation", ["Paris", "Victor Hugo", "Élysée", "東京", "'s"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_ids_before_a_continuation_are_the_prompts(tiny_model, prompt, continuation, bos):
    model = tiny_model("llama", bos=bos)
    text, start = tokenize_continuation(model, prompt, continuation)
    assert text.ids[:start] == tokenize(model, prompt).ids
    assert model.tokenizer.decode(text.ids[start:]) == spaced(prompt, continuation)


@pytest.mark.parametrize("bos", [False, True])
def test_a_given_leading_space_changes_nothing(tiny_model, bos):
    model = tiny_model("llama", bos=bos)
    assert tokenize_continuation(model, "city of", " Paris") == tokenize_continuation(model, "city of", "Paris")


@pytest.mark.parametrize("bos", [False, True])
def test_a_prompt_that_ends_in_a_space_gives_its_space_to_the_continuation(tiny_model, bos):
    model = tiny_model("llama", bos=bos)
    assert tokenize_continuation(model, "city of ", "Paris") == tokenize_continuation(model, "city of", "Paris")


def test_an_empty_prompt_without_bos_starts_at_the_first_token(tiny):
    text, start = tokenize_continuation(tiny, "", "Paris")
    assert start == 0
    assert tiny.tokenizer.decode(text.ids) == " Paris"


@pytest.mark.parametrize("continuation", ["", " ", "\n"])
def test_an_empty_continuation_is_refused(tiny, continuation):
    with pytest.raises(ValueError, match="after 'city of' has no tokens. Give a target or answer that is not empty"):
        tokenize_continuation(tiny, "city of", continuation)


def test_a_long_text_is_read_no_further_than_needed(tiny, monkeypatch):
    """21 MB took 3 GB for a few tokens. What is shorter than a block is tokenised whole, as ever."""
    monkeypatch.setattr(tokens, "_BLOCK", 500)
    seen: list[str] = []
    encode = tokens._encode
    monkeypatch.setattr(tokens, "_encode", lambda model, text: seen.append(text) or encode(model, text))
    whole = tiny.tokenizer(CORPUS * 20, add_special_tokens=False)["input_ids"]
    pieces = list(tokens.token_pieces(tiny, [CORPUS * 20], 8, 40))
    assert list(chain(*pieces)) == whole[:40]
    assert len(seen) == 1
    assert len(seen[0]) <= 1000
    assert list(chain(*tokens.token_pieces(tiny, [CORPUS * 20], 8, 1 << 20))) == whole
    assert sum(map(len, seen[1:])) == len(CORPUS * 20)
    short = CORPUS[:499]
    list(tokens.token_pieces(tiny, [short, short], 8, 1 << 20))
    assert seen[-2:] == [short, short]


def test_half_a_character_is_named_wherever_text_comes_in(tiny):
    half = "\ud800"
    text = f"The capital of {half} is"
    calls = [
        lambda: rl.Fact("{} is in", half),
        lambda: rl.EditRequest(f"{{}} {half} is in", "Rome", "Paris"),
        lambda: rl.EditRequest("{} is in", "Rome", f"Paris{half}"),
        lambda: tokens.tokenize(tiny, text),
        lambda: rl.evaluate.perplexity(tiny, text, progress=False),
        lambda: rl.collect_covariance(tiny, [1], texts=text, tokens=4, progress=False),
        lambda: rl.edit_sequence(tiny, [rl.EditRecord(rl.EditRequest("{} is in", "A", "B"), "C")], text=text),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="half of a character, which is no text|half a surrogate pair") as raised:
            call()
        assert not isinstance(raised.value, UnicodeError)


def test_padding_fills_rows_on_the_right():
    tokens, mask = pad([[5, 6, 7], [8]])
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_padding_keeps_a_token_that_equals_the_filler():
    tokens, mask = pad([[0, 1], [0]])
    assert tokens.dtype == mask.dtype == torch.long
    assert mask.tolist() == [[1, 1], [1, 0]]
