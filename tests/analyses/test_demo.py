"""The demo writes a whole page that needs no network, and leaves the model alone."""

from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch

import rome_lens as rl
from analyses import demo


class Page(HTMLParser):
    """What a browser would see of a page: its text, and everything it names to load."""

    def __init__(self, html: str):
        super().__init__()
        self.loads: list[str] = []
        self.ids: Counter[str] = Counter()
        self.text = ""
        self._silent = False
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent = tag in ("script", "style")
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.ids.update(value or "" for name, value in attrs if name == "id")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._silent else data


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it an error to load a model, that is, to begin with the work."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("The work has begun.")

    monkeypatch.setattr(rl, "load_model", load)


def message_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        demo.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "deep/er"])
@pytest.mark.usefixtures("no_model")
def test_a_file_in_the_way_stops_before_any_work(tmp_path: Path, below: str, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "taken"
    file.write_text("mine")

    message = message_of(["--out", str(file / below)], capsys)

    assert message == f"{file} is a file, expected a folder for {demo.FILES[0]}. Move it away.\n"
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.usefixtures("no_model")
def test_a_folder_in_the_place_of_a_result_stops_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / demo.REPORT).mkdir()

    assert message_of(["--out", str(tmp_path)], capsys).startswith(f"{tmp_path / demo.REPORT} is a folder")


@pytest.mark.parametrize("facts", ["1000"])
@pytest.mark.usefixtures("no_model")
def test_a_number_of_facts_that_there_are_not_is_refused(facts: str, capsys: pytest.CaptureFixture) -> None:
    assert message_of(["--facts", facts], capsys).startswith(f"--facts is {facts}, expected a number from 0 to ")


def test_facts_are_spread_over_relations() -> None:
    eiffel, *others = rl.load_builtin_records()
    relations = {record.relation for record in others}

    chosen = demo._spread(others, len(relations) - 1, after=eiffel)

    assert {record.relation for record in chosen} == relations - {eiffel.relation}
    assert chosen == demo._spread(others, len(others), after=eiffel)[: len(chosen)]
    assert len(set(demo._spread(others, len(others), after=eiffel))) == len(others)


FLAGS = ("steps", "clamped", "targets_missed")
NASTY = " </script><script>alert(1)</script><b>bold</b> & {{ 7 * 7 }}"


@pytest.fixture
def findings() -> demo.Findings:
    """Made-up findings about a fact whose model writes HTML."""
    record = rl.load_builtin_records()[0]
    traces = [
        rl.CausalTrace(
            fact=record.fact,
            config=rl.TraceConfig(kind=kind, samples=2),
            model="model",
            tokens=["The", " Eiffel", NASTY],
            subject_range=(0, 2),
            answer=NASTY,
            answer_tokens=(0,),
            predicted="Paris",
            predicted_token=1,
            clean=0.7,
            corrupted=0.1,
            restored=torch.linspace(0.1, 0.6, 12).view(3, 4),
        )
        for kind in demo.KINDS
    ]
    health = rl.edit.EditHealth(
        **{name: 0.00049 for name in rl.edit.EditHealth.__dataclass_fields__ if name not in FLAGS}
    )
    update = rl.edit.Update(4, torch.ones(3, 1), torch.ones(1, 2))
    edit = rl.Edit((update,), (record.request,), "rome", "model", config={"contexts": ["{}"]}, health=health)
    sides = ("before", "after")
    rows = [(0, m, f"{g}{k}", -0.5) for m in ("base", "rome") for g in "EPN" for k in "SM"]
    scores = pd.DataFrame(rows, columns=["case_id", "method", "metric", "value"]).assign(
        value=lambda frame: frame["value"].where(frame["metric"].str.endswith("M"), 1.0)
    )
    return demo.Findings(
        traces=traces,
        records=[record],
        edit=edit,
        predictions=pd.DataFrame(
            [(when, NASTY, 1, NASTY, 0.0001) for when in sides],
            columns=["when", "prompt", "rank", "token", "probability"],
        ),
        continuations=pd.DataFrame([(when, NASTY, NASTY) for when in sides], columns=["when", "prompt", "text"]),
        scores=scores,
        summary=rl.summarize(scores),
    )


def test_page_shows_text_as_text(findings: demo.Findings) -> None:
    html = demo.page(findings, command=NASTY)

    page = Page(html)
    assert NASTY.strip() in page.text
    assert "<script>alert" not in html
    assert "<b>bold" not in html


def test_page_formats_numbers(findings: demo.Findings) -> None:
    page = Page(demo.page(findings, command=""))

    assert "< 0.001" in page.text
    assert "0.00049" in page.text
    assert "\u22120.50 [\u22120.50, \u22120.50]" in page.text


def test_page_is_the_same_every_time(findings: demo.Findings) -> None:
    assert demo.page(findings, command="") == demo.page(findings, command="")


@pytest.mark.smollm2
def test_demo_writes_a_page_that_stands_alone(smollm2, weights_of, tmp_path: Path) -> None:
    before = weights_of(smollm2)

    report = demo.demo(smollm2, tmp_path / "out", facts=1, samples=1, new_tokens=6)

    assert report == tmp_path / "out" / demo.REPORT
    assert sorted(file.name for file in report.parent.iterdir()) == sorted(demo.FILES)
    assert all(torch.equal(value, before[name]) for name, value in smollm2.state_dict().items())

    html = report.read_text(encoding="utf-8")
    page = Page(html)
    assert page.loads == []
    assert "default-src 'none'" in html
    assert [page.ids[f"trace-{kind}"] for kind in demo.KINDS] == [1, 1, 1]
    assert page.ids["scores"] == 1
    assert html.count("plotly.js v") == 1
    for words in (
        "Where is the fact?",
        "The Eiffel Tower is located in the city of",
        "Paris → Rome",
        "relative_update_norm",
    ):
        assert words in page.text

    edit = rl.Edit.load(report.parent / demo.EDIT)
    assert edit.requests[0] == rl.load_builtin_records()[0].request

    predictions = pd.read_csv(report.parent / "predictions.csv")
    first = predictions[(predictions["rank"] == 1) & (predictions["prompt"] == edit.requests[0].text)]
    assert list(zip(first["when"], first["token"], strict=True)) == [("before", " Paris"), ("after", " Rome")]
    assert predictions.groupby(["when", "prompt"])["probability"].sum().between(0, 1).all()

    continuations = pd.read_csv(report.parent / "continuations.csv")
    assert list(continuations["when"]) == ["before"] * 3 + ["after"] * 3
    for start in continuations["prompt"]:
        assert start in page.text

    scores = pd.read_csv(report.parent / "scores.csv")
    assert scores["case_id"].nunique() == 2
    summary = pd.read_csv(report.parent / "summary.csv").set_index("method")
    assert summary.loc["base", "ES"] == 0
    assert summary.loc["rome", "ES"] == 1
