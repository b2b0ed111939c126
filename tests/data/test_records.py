"""Facts and requests are checked when made, and their subjects' tokens are found whatever the tokenizer."""

import copy
import inspect

import pytest
import transformers
from tokenizers import normalizers

from rome_lens.data.records import EditRecord, EditRequest, Fact, check_template, check_text, fill, subject_range
from tests.upstream import with_tokenizer

PROMPT = "{} is located in the city of"


@pytest.mark.parametrize("make", [Fact, lambda prompt, subject: EditRequest(prompt, subject, "Rome")])
@pytest.mark.parametrize(("prompt", "count"), [("The Eiffel Tower is in", 0), ("{} and {} are in", 2), ("", 0)])
def test_a_prompt_needs_exactly_one_place_for_the_subject(make, prompt, count):
    with pytest.raises(
        ValueError, match=rf"holds {{}} {count} times, expected exactly once\. Write the prompt with {{}}"
    ):
        make(prompt, "The Eiffel Tower")


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u00a0"])
@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("subject", lambda text: Fact(PROMPT, text)),
        ("subject", lambda text: EditRequest(PROMPT, text, "Rome")),
        ("subject", lambda text: Fact.from_text("Paris is big", text)),
        ("target", lambda text: EditRequest(PROMPT, "Paris", text)),
        ("answer", lambda text: Fact(PROMPT, "Paris", text)),
        ("true target", lambda text: EditRecord(EditRequest(PROMPT, "Paris", "Rome"), text)),
    ],
)
def test_blank_texts_are_refused(what, make, blank):
    with pytest.raises(ValueError, match=f"The {what} is empty"):
        make(blank)


@pytest.mark.parametrize("value", [None, 3, b"Paris", ["Paris"]])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: Fact(value, "Paris"),
        lambda value: Fact(PROMPT, value),
        lambda value: EditRequest(PROMPT, "Paris", value),
        lambda value: EditRecord(EditRequest(PROMPT, "Paris", "Rome"), value),
    ],
)
def test_values_that_are_no_strings_are_refused(make, value):
    with pytest.raises(TypeError):
        make(value)


@pytest.mark.parametrize("check", [check_text, check_template])
def test_a_value_that_is_no_string_is_named_with_what_was_expected(check):
    without_type_checker = inspect.unwrap(check)
    with pytest.raises(TypeError, match="The subject is 3, expected a string"):
        without_type_checker(3, "subject")


def test_an_answer_is_optional_but_a_string():
    assert Fact(PROMPT, "Paris").answer is None
    assert Fact(PROMPT, "Paris", "France").answer == "France"


def test_the_text_is_the_prompt_with_the_subject_in_it():
    fact = Fact("In {} it rains", "São Tomé")
    assert fact.text == "In São Tomé it rains"
    assert fact.text[slice(*fact.subject_characters)] == "São Tomé"


def test_braces_in_prompt_and_subject_are_text():
    fact = Fact('{"city": "{}"}'.replace("{}", "\0").replace("\0", "{}"), "a {} of {0}")
    assert fact.text == '{"city": "a {} of {0}"}'
    assert fact.text[slice(*fact.subject_characters)] == "a {} of {0}"


def test_fill_replaces_one_place_only():
    assert fill("say {} %s {0}", "{}") == "say {} %s {0}"


def test_facts_are_values():
    assert {Fact(PROMPT, "Paris"), Fact(PROMPT, "Paris")} == {Fact(PROMPT, "Paris")}
    with pytest.raises(AttributeError):
        Fact(PROMPT, "Paris").subject = "Rome"  # type: ignore[misc]


def test_from_text_takes_the_first_occurrence():
    fact = Fact.from_text("Paris fans say Paris is big", "Paris", "too")
    assert fact == Fact("{} fans say Paris is big", "Paris", "too")
    assert fact.text == "Paris fans say Paris is big"


def test_from_text_refuses_a_subject_that_is_not_there():
    with pytest.raises(ValueError, match="The subject 'paris' is not in the prompt 'Paris is big'. Spell both alike"):
        Fact.from_text("Paris is big", "paris")


def test_from_text_refuses_a_text_that_holds_a_place_already():
    with pytest.raises(ValueError, match="holds {} 2 times"):
        Fact.from_text("Paris and {} are big", "Paris")


def test_a_records_fact_is_what_was_true_before_the_edit():
    record = EditRecord(EditRequest(PROMPT, "The Eiffel Tower", "Rome"), "Paris")
    assert record.fact == Fact(PROMPT, "The Eiffel Tower", "Paris")


SUBJECTS = [
    "Paris",
    "The Eiffel Tower",
    "São Tomé",
    "Jose\u0301",  # the accent is a character of its own
    "Παρίσι",
    "東京タワー",
    "Victor Hugo's",
    "Victor Hugo",
    "L'Équipe",
    "👩‍🚀 crew 🇫🇷",
    "Porsche 911",
    "C++ (language)",
]
PROMPTS = [
    "{} is big",
    "In the continent of {} one speaks French",
    "The capital of Italy is {}",
    "{}'s capital is Rome",
    "東京に{}がある",
    'They say "{}", and',
]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_subjects_tokens_hold_the_subject_and_nothing_of_its_neighbours(tiny_model, prompt, subject, bos):
    model = tiny_model("llama", bos=bos)
    text, positions = subject_range(model, Fact(prompt, subject))
    before, inside, after = (
        model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in (text.ids[: positions.start], text.ids[positions.start : positions.stop], text.ids[positions.stop :])
    )
    assert inside.strip() == subject
    assert before.rstrip() == prompt.split("{}")[0].rstrip()
    assert after == prompt.split("{}")[1]


@pytest.mark.parametrize("bos", [False, True])
def test_the_place_in_the_prompt_counts_not_the_first_occurrence(tiny_model, bos):
    model = tiny_model("llama", bos=bos)
    text, positions = subject_range(model, Fact("Paris fans say {} is big", "Paris"))
    fans = model.to_tokens("Paris fans say").shape[1]
    assert positions.start == fans
    assert model.tokenizer.decode(text.ids[positions.start : positions.stop]) == " Paris"


def test_bos_moves_the_subject_by_one_and_is_never_part_of_it(tiny_model):
    fact = Fact(PROMPT, "The Eiffel Tower")
    _, without = subject_range(tiny_model("llama"), fact)
    _, with_bos = subject_range(tiny_model("llama", bos=True), fact)
    assert without.start == 0
    assert with_bos == range(1, without.stop + 1)


def test_a_token_that_reaches_beyond_the_subject_belongs_to_it(tiny):
    text, positions = subject_range(tiny, Fact("the city of {}is", "Par"))
    assert tiny.tokenizer.decode(text.ids[positions.start : positions.stop]) == " Paris"


def test_requests_are_located_as_facts_are(tiny):
    request = EditRequest("In {} it rains", "Victor Hugo", "always")
    assert subject_range(tiny, request) == subject_range(tiny, Fact(request.prompt, request.subject))


def test_tokens_are_the_ones_the_model_reads(tiny_model):
    model = tiny_model("gpt2", bos=True)
    text, _ = subject_range(model, Fact("In {} it rains", "São Tomé"))
    assert list(text.ids) == model.to_tokens("In São Tomé it rains")[0].tolist()


def test_a_subject_that_the_tokenizer_drops_is_refused(tiny, monkeypatch):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("☃", "")
    with_tokenizer(monkeypatch, tiny, tokenizer)
    with pytest.raises(ValueError, match=r"The subject '☃' has no tokens in 'In ☃ it rains'.*Choose a subject"):
        subject_range(tiny, Fact("In {} it rains", "☃"))


def test_a_normaliser_that_drops_characters_before_the_subject_does_not_move_it(tiny, monkeypatch):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("☃", "")
    with_tokenizer(monkeypatch, tiny, tokenizer)
    text, positions = subject_range(tiny, Fact("☃☃ In {} it rains", "Victor Hugo"))
    assert tokenizer.decode(text.ids[positions.start : positions.stop]) == " Victor Hugo"


def test_a_prompt_longer_than_the_context_is_refused(tiny):
    with pytest.raises(ValueError, match=r"has \d+ tokens, but gpt2 reads at most 128\. Shorten it"):
        subject_range(tiny, Fact("{}" + " one two three" * 100, "Paris"))


def test_a_slow_tokenizer_is_refused(tiny, monkeypatch):
    with_tokenizer(monkeypatch, tiny, transformers.ByT5Tokenizer())
    with pytest.raises(ValueError, match="ByT5Tokenizer does not tell which characters a token covers.*use_fast=True"):
        subject_range(tiny, Fact(PROMPT, "Paris"))


def test_a_model_without_a_tokenizer_is_refused(tiny, monkeypatch):
    with_tokenizer(monkeypatch, tiny, None)
    with pytest.raises(ValueError, match=r"The model has no tokenizer.*Set it with model\.(set_)?tokenizer"):
        subject_range(tiny, Fact(PROMPT, "Paris"))


@pytest.mark.parametrize("subject", [" Paris", "Paris ", "Paris\n"])
def test_subjects_with_outer_spaces_are_refused(subject):
    with pytest.raises(ValueError, match="begins or ends with a space"):
        Fact("In {} is", subject)
