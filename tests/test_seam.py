"""`rome_lens.models` is the one room that knows TransformerLens and Hugging Face: no other reaches into a model."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import rome_lens

PACKAGE = Path(rome_lens.__file__).parent
BELOW = PACKAGE / "calling.py"  # `models` itself imports it
OUTSIDE = sorted(path for path in PACKAGE.rglob("*.py") if PACKAGE / "models" not in path.parents and path != BELOW)

CLASSES = {"HookedTransformer", "TransformerBridge"}
SETTINGS = {"d_model", "d_vocab", "device", "dtype", "model_name", "n_ctx", "n_heads", "n_layers"}  # alike in both
INSIDE = {  # attributes of a model, its blocks or its modules
    *("blocks", "hook_dict", "hooks", "add_hook", "run_with_cache", "run_with_hooks", "original_model"),
    *("original_component", "get_submodule", "named_modules", "register_forward_hook", "register_forward_pre_hook"),
    *("W_E", "W_U", "W_in", "W_gate", "W_out", "b_out", "ln_final", "unembed", "num_hidden_layers", "model_type"),
}
PATHS = re.compile(r"(?<![\w.])(blocks|gpt_neox|layers|model|transformer)\.[\w{}]+\.|\bhook_\w+|\w_proj\b")


def known(source: str) -> set[str]:
    """What a file knows of the two classes, their hook points and settings, and Hugging Face's module paths."""
    nodes = list(ast.walk(ast.parse(source)))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    settings = {node.attr for node in attributes if isinstance(node.value, ast.Attribute) and node.value.attr == "cfg"}
    names = {node.id for node in nodes if isinstance(node, ast.Name)} | set(imported(nodes))
    libraries = {name for name in names if name.partition(".")[0] in ("transformer_lens", "transformers")}
    reached = (
        ({node.attr for node in attributes} & INSIDE) | (settings - SETTINGS) | set(filter(PATHS.search, texts(nodes)))
    )
    return reached | (names & CLASSES) | (libraries - {"transformers.PreTrainedModel"})


def imported(nodes: list[ast.AST]) -> Iterator[str]:
    """The dotted names that a file imports."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def texts(nodes: list[ast.AST]) -> Iterator[str]:
    """The strings in a file, docstrings left out."""
    documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    strings = (node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    yield from (node.value for node in strings if id(node) not in documentation)


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_room_reaches_into_a_model(path):
    assert not known(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "with model.hooks(fwd_hooks=[]): pass",
        "weight = model.blocks[0].mlp",
        "name = f'blocks.{layer}.hook_resid_post'",
        "name = 'attn.hook_z'",
        "path = 'model.layers.{}.mlp.down_proj'",
        "width = model.cfg.d_mlp",
        "if isinstance(model, TransformerBridge): pass",
        "from transformers.pytorch_utils import Conv1D",
        "import transformer_lens",
    ],
)
def test_reaching_into_a_model_is_noticed(line):
    assert known(line)
