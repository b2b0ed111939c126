"""`rome-lens` finds analyses by the beginning of a name, runs those of a checkout, and says what there is."""

import ast
import os
import subprocess
import sys

import pytest

import rome_lens as rl
from rome_lens import cli


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["rome-lens", *arguments])
    cli.main()


def test_the_list_has_every_analysis_with_a_sentence(capsys, monkeypatch):
    run("list", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names == sorted(path.stem for path in cli.CHECKOUT.glob("*.py") if path.stem != "__init__")
    assert {"demo", "figure1_causal_traces", "table4_counterfact"} <= set(names)
    assert all(line.endswith((".", "?")) and len(line.split()) > 4 for line in lines), lines


def test_the_beginning_of_a_name_runs_the_analysis_under_its_whole_name(capsys, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        run("figure1", "--help", monkeypatch=monkeypatch)
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: rome-lens figure1_causal_traces [-h]")
    assert "--prompt" in shown


@pytest.mark.parametrize("path", sorted(cli.CHECKOUT.rglob("*.py")), ids=lambda path: path.stem)
def test_analyses_name_each_other_by_where_they_are(path):
    """In a wheel they are rome_lens.analyses, and there is no `analyses`."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    assert "analyses" not in {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table", "'table' is the beginning of 2 analyses, expected one of table1_zsre, table4_counterfact. "),
        (
            "figure9",
            "'figure9' is the beginning of no analyses, expected one of attribution_agreement, ",
        ),
    ],
)
def test_what_names_no_analysis_or_several_is_refused_with_the_candidates(name, message, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        run(name, monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_presets_are_shown_with_their_source(capsys, monkeypatch):
    run("presets", "--model", "gpt-j", "--method", "memit", monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    assert "GPT-J 6B" in shown
    assert "3-8" in shown
    assert "published" in shown
    assert "kmeng01/memit" in shown
    assert "Llama" not in shown
    with pytest.raises(SystemExit):
        run("presets", "--model", "nothing", monkeypatch=monkeypatch)
    assert "--model is 'nothing', expected the beginning of one of GPT-2 medium, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["figure2", "--model", "nope"], "nope"),
        (["figure2", "--facts", "nofile.json"], "There is no file nofile.json"),
        (["table4", "--model", "no/such/folder"], "no/such/folder"),
    ],
)
def test_an_error_of_ours_is_one_line_at_the_shell(arguments, said, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "--facts" in arguments:
        monkeypatch.setattr(rl, "load_model", lambda *_, **__: None)
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, "--out", str(tmp_path), monkeypatch=monkeypatch)
    message = str(stopped.value.code)
    assert message.startswith("rome-lens: ")
    assert said in message
    assert "\n" not in message


def test_what_a_library_raises_keeps_its_traceback(monkeypatch):
    def broken() -> None:
        ast.parse("1 +")

    monkeypatch.setattr(cli, "_run", broken)
    with pytest.raises(SyntaxError):
        cli.main()
    monkeypatch.setattr(cli, "_run", lambda: ast.literal_eval("x y z"))
    with pytest.raises(SyntaxError):
        cli.main()
    monkeypatch.setattr(cli, "_run", lambda: ast.literal_eval("x"))
    with pytest.raises(ValueError, match="malformed"):
        cli.main()


def test_nobody_needs_to_read_the_list_to_its_end():
    """`rome-lens list | head -1`: a pipe that is closed at once."""
    root = cli.CHECKOUT.parent
    script = "import sys, os; from rome_lens import cli; sys.argv = ['rome-lens', 'list']; cli.main()"
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=closed, stderr=subprocess.PIPE, env=environment, cwd=root
        )
    assert done.stderr.decode() == ""
