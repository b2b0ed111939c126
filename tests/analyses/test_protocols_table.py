"""One command gives the same edits under several protocols, for files of any schema, and goes on where it was."""

import pandas as pd
import pytest

from analyses import protocols
from rome_lens.evaluate import scoring
from tests.analyses.cases import whole
from tests.data.test_load_records import CASES


def test_the_table_has_a_column_for_each_protocol_and_the_records_of_each_file(given, tmp_path, monkeypatch):
    questions = tmp_path / "qaedit.json"
    pd.DataFrame([CASES["QAEdit"][0]]).to_json(questions, orient="records")
    asked = ["--records", str(tmp_path / "records.json"), str(questions), "--count", "1", "--methods", "ft"]
    arguments = ["--out", str(tmp_path / "out"), *asked, "--protocols", "probability", "teacher_forced", "generated"]
    protocols.main(arguments)
    table = pd.read_csv(tmp_path / "out" / "by_protocol.csv").set_index(["data", "method", "metric"])
    row = table.loc[("records", "ft", "efficacy")]
    assert row[["probability", "teacher_forced", "generated"]].between(0, 1).all()
    assert table.loc[("qaedit", "base", "locality"), ["teacher_forced", "generated"]].to_list() == [1, 1]
    shown = pd.read_csv(tmp_path / "out" / "table.csv").set_index(["data", "method", "metric"])
    pd.testing.assert_frame_equal(shown, table.loc[shown.index], check_dtype=False)
    assert set(shown.index.get_level_values("metric")) == {"efficacy", "paraphrase", "locality"}
    assert whole(tmp_path / "out", "records", "qaedit")["arguments"]["count"] == 1
    monkeypatch.setattr(scoring, "measured", lambda *_, **__: pytest.fail("This was done already."))
    protocols.main(arguments)
    again = pd.read_csv(tmp_path / "out" / "by_protocol.csv").set_index(["data", "method", "metric"])
    pd.testing.assert_frame_equal(again, table)
