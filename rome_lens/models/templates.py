"""Chat templates, which are programs that came with a model, rendered within bounds.

They run in transformers' sandbox, which keeps them from the machine, but not from running for ever or filling memory.
So each call, operation and round of a loop is counted, with the characters that it makes; and what an operation could
make is estimated before it is done.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial, wraps
from typing import Any

from jinja2 import Template, meta, nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from rome_lens.storage import foreign

_MOST = 10_000_000  # characters made, or a hundredth as many steps, that any template may take
_FOR_EACH = 100  # more for each character of the turns
_STEP = 100
_THING = 10
_WIDTH = re.compile(r"[%{].*(\d{6}|\*)", re.DOTALL)  # of a format: what it writes would be as wide
_left: ContextVar[list[int]] = ContextVar("_left")


def render(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, str]], options: Mapping[str, Any], name: str
) -> str:
    """The turns in a tokenizer's chat template, up to where the model's answer begins.

    Args:
        tokenizer: Has a template.
        turns: Each with a role and a content.
        options: What the template asks for besides, such as enable_thinking.
        name: What errors call the template.

    Raises:
        ValueError: the template asks for no such option.
        FormatError: the template is damaged, refuses the turns, or makes too much of them.
    """
    with foreign(name, "cannot be read", "Set another as model.tokenizer.chat_template."), _bounded(_MOST):
        template, known = _compiled(tokenizer.get_chat_template(tools=options.get("tools")))
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"{name} does not ask for {unknown[0]!r}, expected options among {sorted(known)}.")
    given = {"tools": None, "documents": None, **tokenizer.special_tokens_map, **options}
    units = _MOST + _FOR_EACH * _length(turns)
    with foreign(name, "cannot be rendered", "Set another as model.tokenizer.chat_template."), _bounded(units):
        return template.render(messages=turns, add_generation_prompt=True, **given)


@contextmanager
def _bounded(units: int) -> Iterator[None]:
    before = _left.set([units])
    try:
        yield
    finally:
        _left.reset(before)


@lru_cache(maxsize=16)
def _compiled(source: str) -> tuple[Template, frozenset[str]]:
    """A template that spends units on what it does, and the names of its options."""
    _spend(len(source))
    environment: Any = _compile_jinja_template("").environment.overlay()  # transformers' tags, filters and functions
    environment.call = partial(_call, environment.call)
    environment.call_binop = partial(_operate, environment.binop_table)
    environment.intercepted_binops = frozenset({"+", "*", "**", "%"})
    environment.filters = {key: _filter(function) for key, function in environment.filters.items()}
    environment.globals = {key: value for key, value in environment.globals.items() if key != "lipsum"}
    environment.shown, environment.joined = _shown, _joined
    tree = environment.parse(source)
    asked = meta.find_undeclared_variables(tree) - environment.globals.keys()
    _count(tree)
    template = environment.from_string(tree.set_environment(environment))
    return template, frozenset(asked - {"messages", "add_generation_prompt"})


def _count(node: nodes.Node) -> None:
    """Puts a call, which spends units, into each round of loops and macros, around what is shown, and for each ~."""
    for field, value in list(node.iter_fields()):
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            if isinstance(child, nodes.Node):
                _count(child)
            if isinstance(child, nodes.Concat):
                children[i] = _asking("joined", child.nodes)
        if not isinstance(value, list):
            setattr(node, field, children[0])
    if isinstance(node, nodes.Output):
        texts = [nodes.Const(part.data) if isinstance(part, nodes.TemplateData) else part for part in node.nodes]
        node.nodes = [_asking("shown", [text]) for text in texts]
    if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
        node.body.insert(0, nodes.ExprStmt(_asking("shown", [nodes.Const("")])))


def _asking(function: str, values: Sequence[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(function), list(values), [], None, None)


def _shown(value: Any) -> Any:
    return value


def _joined(*values: Any) -> str:
    return "".join(map(str, values))


def _call(call: Callable[..., Any], context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
    text = getattr(method, "__self__", None)
    if isinstance(text, str):
        _check_format(text, method.__name__)
        return _spent(partial(call, context, function, *args, **kwargs), text, *args, *kwargs.values())
    _afford(sum(map(_length, (*args, *kwargs.values()))))
    return _spent(partial(call, context, function, *args, **kwargs))


def _filter(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        given = args[hasattr(function, "jinja_pass_arg") :]
        _check_format(given[0], function.__name__)
        return _spent(partial(function, *args, **kwargs), *given, *kwargs.values())

    return filtered


def _operate(table: Mapping[str, Callable[..., Any]], context: Any, operator: str, left: Any, right: Any) -> Any:
    if operator == "+" or (operator == "*" and isinstance(left, int) and isinstance(right, int)):
        _afford(_length(left) + _length(right))
        return _spent(partial(table[operator], left, right))
    _check_format(left, operator)
    first, second = (right, left) if operator == "*" and isinstance(left, int) else (left, right)
    return _spent(partial(table[operator], left, right), first, second)


def _spent(function: Callable[[], Any], first: Any = None, *others: Any) -> Any:
    """What the function makes of a value, at most as often as the largest of the others says or is long."""
    times = (abs(each) if isinstance(each, int) else _length(each) for each in others)
    _afford(_length(first) * max(times, default=1))
    made = function()
    _spend(_STEP + _length(made))
    return made


def _check_format(text: Any, operation: str) -> None:
    if operation in ("%", "do_format", "format", "format_map") and isinstance(text, str) and _WIDTH.search(text):
        raise ValueError("it has a format for texts that are too long")


def _afford(units: int) -> None:
    if units > _left.get()[0]:
        raise ValueError("it goes on without end, or makes a text that is too long")


def _spend(units: int) -> None:
    _afford(units)
    _left.get()[0] -= units


def _length(value: Any) -> int:
    """How much a value holds: characters, and `_THING` for each other thing; no more than is left is counted."""
    most, found, waiting = _left.get([_MOST])[0], 0, [value]
    while waiting and found <= most:
        each = waiting.pop()
        if isinstance(each, str | bytes | range):
            found += len(each)
        elif isinstance(each, int):
            found += _THING + each.bit_length() ** 2 // 1000  # what a product of two costs
        elif isinstance(each, Mapping):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset):
            found += _THING
            waiting += each
        else:
            found += _THING
    return found
