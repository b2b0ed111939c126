"""Runs the analyses by name: `rome-lens list` shows them, `rome-lens NAME --help` tells the options of one.

The beginning of a name will do where it is that of one only: `rome-lens figure1`.
"""

import argparse
import ast
import importlib
import os
import sys
from pathlib import Path
from traceback import walk_tb

from rome_lens.version import __version__

INSTALLED = Path(__file__).with_name("analyses")  # where a wheel puts them
CHECKOUT = Path(__file__).parents[1] / "analyses"  # which may be changed while it is installed with `pip install -e`


def main() -> None:
    """Runs the analysis that the command line names. An error of ours is one line, and nobody's reading on is none."""
    try:
        _run()
        sys.stdout.flush()
    except BrokenPipeError:  # of `rome-lens list | head`; what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if not _ours(error):
            raise
        sys.exit(f"rome-lens: {' '.join(str(error).split())}")


def _ours(error: Exception) -> bool:
    """Whether this package has raised it, or it names a file; what a library raises has its traceback."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    ours = frame.f_globals["__name__"].partition(".")[0] in ("rome_lens", "analyses")
    return ours or type(error).__module__ == "rome_lens.errors" or getattr(error, "filename", None) is not None


def _run() -> None:
    folder = INSTALLED if INSTALLED.is_dir() else CHECKOUT
    paths = {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}

    arguments = argparse.ArgumentParser("rome-lens", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--version", action="version", version=__version__)
    arguments.add_argument("name", nargs="?", default="list", help="`list`, or the beginning of an analysis' name")
    arguments.add_argument("options", nargs=argparse.REMAINDER, help="those of the analysis")
    given = arguments.parse_args()
    if given.name == "list":
        print("\n".join(f"{name:25} {_summary(path)}" for name, path in paths.items()))
        return

    found = [given.name] if given.name in paths else [name for name in paths if name.startswith(given.name)]
    if len(found) != 1:
        received = f"{given.name!r} is the beginning of {len(found) or 'no'} analyses"
        arguments.error(f"{received}, expected one of {', '.join(found or paths)}. `rome-lens list` describes them.")
    sys.argv = [found[0], *given.options]  # as after `python -m`: help and manifests take the name from it
    package = "rome_lens.analyses" if folder == INSTALLED else "analyses"
    importlib.import_module(f"{package}.{found[0]}").main()


def _summary(path: Path) -> str:
    """The first line of a file's docstring. Nothing is imported."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
