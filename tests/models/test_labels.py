"""Labels of tokens can be read, also where a token holds a part of a character."""

import pytest

import rome_lens as rl
from rome_lens.models.labels import token_text, token_texts
from rome_lens.models.tokens import tokenize
from tests.upstream import with_tokenizer


def test_whole_tokens_are_labelled_as_they_are_written(tiny):
    ids = tokenize(tiny, "The Eiffel Tower\nis").ids
    assert token_texts(tiny, ids) == [tiny.tokenizer.decode([token]) for token in ids]
    assert "".join(token_texts(tiny, ids)) == "The Eiffel Tower\nis"


@pytest.mark.parametrize(("text", "labels"), [("é", ["é(1/2)", "é(2/2)"]), ("日", ["日(1/3)", "日(2/3)", "日(3/3)"])])
def test_parts_of_a_character_are_labelled_with_it(tiny, text, labels):
    assert token_texts(tiny, tokenize(tiny, text).ids) == labels


def test_bytes_that_are_no_character_are_written_as_bytes(tiny):
    ids = tokenize(tiny, "日").ids
    assert [token_text(tiny, token) for token in ids] == [r"\xe6", r"\x97", r"\xa5"]
    assert token_texts(tiny, ids[1:]) == [r"\x97", r"\xa5"]
    assert token_texts(tiny, (ids[2], *ids)) == [r"\xa5", "日(1/3)", "日(2/3)", "日(3/3)"]


def test_a_replacement_character_in_the_text_stays(tiny):
    assert token_texts(tiny, tokenize(tiny, "\ufffd").ids) == ["\ufffd(1/3)", "\ufffd(2/3)", "\ufffd(3/3)"]


def test_byte_tokens_of_sentencepiece_are_read(tiny_model, monkeypatch):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁Rome": 257, "▁": 258}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model = tiny_model("llama")
    with_tokenizer(monkeypatch, model, PreTrainedTokenizerFast(tokenizer_object=made))
    assert token_texts(model, [257, 258, 0xE6 + 1, 0x97 + 1, 0xA5 + 1]) == [
        " Rome",
        " ",
        "日(1/3)",
        "日(2/3)",
        "日(3/3)",
    ]


def test_a_trace_has_a_label_for_each_position(tiny):
    made = rl.causal_trace(tiny, rl.Fact("{}的首都是", "法国"), samples=2, progress=False)
    assert len(made.tokens) == len(made.restored) == len(set(made.tokens))
    assert not any("\ufffd" in label for label in made.to_frame()["token"])
