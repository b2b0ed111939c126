"""Kept figures are drawn anew from their tables, and those that are kept are what is drawn today."""

import json
from pathlib import Path

import pytest

from analyses import redraw
from analyses.common.figures import kept_figures

RESULTS = Path(__file__).parents[2] / "analyses/results"
DRAWN = sorted({path.parent for path in RESULTS.glob("*/*.json") if path.name != "manifest.json"})


def rounded(value):
    """Numbers to nine digits: the last ones differ between processors."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


@pytest.mark.parametrize("folder", DRAWN, ids=lambda folder: folder.name)
def test_kept_figures_are_those_of_the_tables_beside_them(folder):
    """Otherwise: `rome-lens redraw analyses/results/NAME --forms json png`, and look at them."""
    for name, figure in kept_figures(folder).items():
        kept, drawn = json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), json.loads(figure.to_json())
        assert (folder / f"{name}.png").is_file()
        for each in (kept, drawn):
            each["layout"].pop("template")  # plotly's own looks, which change with its version
        assert rounded(kept) == rounded(drawn), name


def test_a_folder_is_drawn_in_the_forms_that_are_asked_for_and_one_without_figures_is_refused(tmp_path, capsys):
    figure2, table1 = (RESULTS / f"{name}_smollm2-135m" for name in ("figure2", "table1"))
    redraw.main([str(figure2), "--forms", "json", "--out", str(tmp_path)])
    assert sorted(path.name for path in (tmp_path / figure2.name).iterdir()) == ["figure2.json", "lines.json"]
    for folder, says in ((table1, "draws no figures"), (tmp_path, "holds no manifest.json")):
        with pytest.raises(SystemExit):
            redraw.main([str(folder)])
        assert says in capsys.readouterr().err
