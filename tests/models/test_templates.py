"""Chat templates are rendered as transformers does it, but within bounds; and thoughts are no answers."""

import copy

import pytest

import rome_lens as rl
from rome_lens.models.chat import after_thoughts, begins_in_thought

ASKING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content|trim ~ '\\n' }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "product": "{{ 'x' * 100000000 }}",
    "doubling": "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "method": "{{ 'a'.ljust(1000000000) }}",
    "filter": "{{ 'a'|center(1000000000) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "block": "{% set z %}{% for i in range(99999) %}" + "y" * 5000 + "{% endfor %}{% endset %}",
}


@pytest.fixture
def chatting(tiny_model):
    model = copy.deepcopy(tiny_model("llama"))
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = ASKING
    return model


def test_options_go_through_and_the_text_is_that_of_transformers(chatting):
    turns = [{"role": "user", "content": "Hi"}]
    for options in ({}, {"enable_thinking": False}):
        expected = chatting.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
        assert rl.data.in_chat(chatting, "Hi", **options) == expected
    with pytest.raises(ValueError, match="does not ask for 'enable_thinkin', expected options among"):
        rl.data.in_chat(chatting, "Hi", enable_thinkin=False)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped(chatting, name):
    chatting.tokenizer.chat_template = ENDLESS[name]
    with pytest.raises(rl.errors.FormatError, match="cannot be rendered .*too long"):
        rl.data.in_chat(chatting, "Hi")


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no') }}", "{{ messages[9].a.b }}", "{{ 1/0 }}"])
def test_errors_of_a_template_are_format_errors(chatting, template):
    chatting.tokenizer.chat_template = template
    with pytest.raises(rl.errors.FormatError, match="The chat template of .* cannot be re"):
        rl.data.in_chat(chatting, "Hi")


@pytest.mark.parametrize(
    ("written", "inside", "expected"),
    [
        ("Paris", False, "Paris"),
        ("<think>Rome.\n</think>Paris", False, "Paris"),
        ("Rome.</think>Paris", True, "Paris"),
        ("<think>Rome", False, None),
        ("Rome", True, None),
        ("[THINK]Rome[/THINK]Paris", False, "Paris"),
        ("<|channel|>analysis<|message|>Rome<|end|><|start|>assistant<|channel|>final<|message|>Paris", False, "Paris"),
    ],
)
def test_thoughts_are_no_answers(written, inside, expected):
    assert after_thoughts(written, inside=inside) == expected


def test_a_template_may_begin_a_thought():
    assert begins_in_thought("<|assistant|><think>\n")
    assert not begins_in_thought("<think></think>")
