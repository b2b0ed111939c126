"""What all commands share: tables that no spreadsheet runs, and numbers that are counts."""

import pandas as pd
import pytest

from analyses.common.options import parser, read_csv, write_csv

ODD = [
    "=1+1",
    "+x",
    "-x",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "'=x",
    "''@x",
    "'plain'",
    "plain",
    "null",
    "-",
    "=cmd|' /C calc'!A0",
]


def test_a_text_that_a_spreadsheet_takes_for_a_formula_is_written_as_text_and_read_as_it_was(tmp_path):
    frame = pd.DataFrame({"token": ODD, "value": [-0.5] * len(ODD), "=HYPERLINK(1)": ODD[::-1]})
    path = tmp_path / "table.csv"
    write_csv(frame, path)
    raw = pd.read_csv(path, keep_default_na=False)
    cells = [*raw["token"], *raw.columns, *raw[raw.columns[2]]]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert raw["value"].dtype == float
    assert path.read_text().count(",-0.5,") == len(ODD)
    pd.testing.assert_frame_equal(read_csv(path), frame)


@pytest.mark.parametrize("number", ["-3", "nan", "inf", "three", "1e400"])
@pytest.mark.parametrize("kind", [int, float])
def test_a_number_is_finite_and_at_least_0(capsys, number, kind):
    arguments = parser(None)
    arguments.add_argument("--count", type=kind, default=5, help="how many")
    with pytest.raises(SystemExit):
        arguments.parse_args([f"--count={number}"])
    assert f"argument --count: '{number}' given, expected a" in capsys.readouterr().err
    assert arguments.parse_args(["--count", "3"]).count == 3
