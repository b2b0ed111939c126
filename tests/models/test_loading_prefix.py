"""Loading reads what the model reads: the tokenizer's whole prefix, no EOS after a text, no token without a row."""

import copy

import pytest
import torch
from tokenizers import processors
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import rome_lens as rl
from rome_lens.errors import FormatError
from rome_lens.models import prefix_ids
from rome_lens.models.loading.checkpoint import check_allocation
from rome_lens.models.parameters import check_normal
from rome_lens.models.tokens import tokenize

TEXT = "The Eiffel Tower"


@pytest.fixture
def parts(tiny_folder):
    folder = tiny_folder("llama")
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def adding(tokenizer, before: list[str], after: list[str]):
    """The tokenizer with special tokens around each text."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"bos_token": tokenizer.convert_ids_to_tokens(0)})
    known = [(token, tokenizer.convert_tokens_to_ids(token)) for token in {*before, *after}]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", "$B", *after], special_tokens=known
    )
    return tokenizer


def test_all_that_the_tokenizer_puts_before_a_text_is_read(parts):
    hf_model, tokenizer = parts
    two = adding(tokenizer, tokenizer.convert_ids_to_tokens([5, 6]), [])
    model = rl.load_model(hf_model, tokenizer=two, device="cpu")
    assert prefix_ids(model) == [5, 6]
    assert list(tokenize(model, TEXT).ids) == two(TEXT)["input_ids"] == model.to_tokens(TEXT)[0].tolist()


def test_an_eos_after_each_text_is_left_out(parts):
    hf_model, tokenizer = parts
    first, last = tokenizer.convert_ids_to_tokens([0, 7])
    ending = adding(tokenizer, [first], [last])
    model = rl.load_model(hf_model, tokenizer=ending, device="cpu")
    assert model.to_tokens(TEXT)[0].tolist() == list(tokenize(model, TEXT).ids) == ending(TEXT)["input_ids"][:-1]
    assert ending(TEXT)["input_ids"][-1] == 7, "the caller's own is left as it was"


def test_tokens_beyond_the_embedding_are_refused(parts):
    hf_model, tokenizer = parts
    more = copy.deepcopy(tokenizer)
    more.add_tokens([f"<more {i}>" for i in range(hf_model.config.vocab_size)])
    with pytest.raises(FormatError, match="tokens beyond them .*resize_token_embeddings"):
        rl.load_model(hf_model, tokenizer=more, device="cpu")


def test_weights_that_were_dequantized_from_gguf_are_plain(parts):
    hf_model, tokenizer = parts
    hf_model.config.quantization_config = {"quant_method": "gguf"}  # as from_pretrained(..., gguf_file=) leaves it
    assert rl.load_model(hf_model, tokenizer=tokenizer, device="cpu")


def test_a_wrapped_model_is_told_how_to_unwrap_it(parts, tiny_model):
    request = rl.EditRequest("{} is in", "The Eiffel Tower", "Rome")
    for wrapped, way in (
        (nn.DataParallel(tiny_model("gpt2")), r"model\.module"),
        (parts[0], r"load_model\(model, tok"),
    ):
        with pytest.raises(TypeError, match=f"Write {way}"):
            rl.rome(wrapped, request)


def test_weights_that_are_not_in_memory_are_named(parts):
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(parts[0].config)
    with pytest.raises(ValueError, match="not in memory"):
        check_normal(empty.parameters())


def test_sizes_that_no_tensor_bounds_are_refused():
    with torch.device("meta"):
        huge = nn.Embedding(1 << 24, 36)
    with pytest.raises(FormatError, match="holds weights of 100"):
        check_allocation(huge, 100, "model")
