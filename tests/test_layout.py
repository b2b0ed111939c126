"""Which module may import which, and what the package promises in its top-level names."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import rome_lens
from tests.public import OF_MODELS, PUBLIC, ROOMS

PACKAGE = Path(rome_lens.__file__).parent
BASE = {"data", "engine", "errors", "intervals", "models", "storage", "version"}
MAY_IMPORT = {
    "locate": BASE | {"plots"},
    "edit": BASE,
    "evaluate": BASE | {"edit", "locate", "plots"},
    "explorer": BASE | {"edit", "evaluate", "locate", "plots"},
    "plots": {"errors", "storage"},
    "data": {"errors", "models", "storage"},
    "engine": {"errors", "models"},
    "models": {"errors", "storage"},
    "storage": {"errors"},
    "intervals": set(),
    "checking": set(),
    "cli": {"version"},
    "errors": set(),
    "version": {"errors"},
    "calling": {"errors"},
}


def imports(path: Path) -> Iterator[str]:
    """The dotted names of the modules that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path: Path) -> str:
    """The module or subpackage directly below rome_lens that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))
INNER = [path for path in FILES if path != PACKAGE / "__init__.py"]


def test_every_part_of_the_package_has_a_rule():
    assert {part(path) for path in INNER} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", INNER, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path):
    own = {name.split(".")[1] for name in imports(path) if name.startswith("rome_lens.")}
    assert own - {part(path)} <= MAY_IMPORT[part(path)] | {"checking", "calling"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_of_the_package_imports_scripts_or_tests(path):
    assert {name.split(".")[0] for name in imports(path)}.isdisjoint({"analyses", "tests", "notebooks"})


# fmt: off
FLAT = [
    "CausalTrace", "Edit", "EditLedger", "EditRecord", "EditRequest", "Explorer", "Fact", "FactMemory", "GaussianNoise",
    "KeyCovariance", "MemitConfig", "Model", "RomeConfig", "TraceConfig", "__version__", "average_effects",
    "causal_trace",
    "collect_covariance", "compare_models", "edit_sequence", "load_builtin_records", "load_counterfact",
    "load_model", "load_records", "memit", "recommend_layers", "rome", "score_edits", "summarize", "trace_facts",
]
# fmt: on
"""What nearly every user needs. All else is in the rooms."""


def test_few_names_are_flat_and_the_others_in_rooms():
    assert set(rome_lens.__all__) == {*FLAT, "data", "edit", "errors", "evaluate", "locate", "models", "plots"}


@pytest.mark.parametrize("room", [rome_lens, *ROOMS], ids=lambda room: room.__name__)
def test_every_imported_name_is_public_and_every_public_name_is_there(room):
    assert len(room.__all__) == len(set(room.__all__))
    tree = ast.parse(Path(room.__file__).read_text(encoding="utf-8"))
    imported = {alias.asname or alias.name for n in tree.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert imported == set(room.__all__) or room is rome_lens.errors


def test_a_name_means_one_thing():
    """A name is in one room only, and flat names are names of rooms."""
    found = [(name, id(getattr(room, name))) for room in ROOMS for name in room.__all__]
    assert len(dict(found)) == len(found)
    inside = {*dict(found), *OF_MODELS, "Explorer", "__version__"}
    assert set(FLAT) <= inside


@pytest.mark.parametrize(
    "name", [name for name, thing in PUBLIC.items() if inspect.isclass(thing) or inspect.isfunction(thing)]
)
def test_every_public_name_and_its_public_methods_have_docstrings(name):
    value = PUBLIC[name]
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}("), "dataclass' own text, not a docstring"
    if inspect.isclass(value):
        members = {key: member for key, member in vars(value).items() if not key.startswith("_")}
        documented = [m for m in members.values() if isinstance(m, property | classmethod) or inspect.isfunction(m)]
        assert all(inspect.getdoc(member) for member in documented)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_for(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body or path.name == "version.py"
