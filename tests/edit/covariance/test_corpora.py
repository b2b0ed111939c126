"""Where texts come from: files, datasets and the model, read as they are needed and again from their start."""

import importlib.util
import itertools
import json

import pandas as pd
import pytest
import torch

import rome_lens as rl
from rome_lens.models import tokens
from tests.tiny import CORPUS

ROWS = [f"Text {i}: {CORPUS}" for i in range(20)]


def test_a_file_is_read_in_blocks_that_end_with_lines(tmp_path, monkeypatch):
    """Nothing is lost or doubled, no block is more than two blocks long, and blocks end where lines do."""
    monkeypatch.setattr(tokens, "_BLOCK", 200)
    path = tmp_path / "long.txt"
    path.write_text(CORPUS * 5 + "ö" * 1000, encoding="utf-8")
    texts = rl.edit.texts_from_file(path)
    blocks = list(texts)
    assert "".join(blocks) == path.read_text(encoding="utf-8")
    assert max(map(len, blocks)) <= 400
    assert all(block.endswith("\n") for block in blocks[:3])
    assert list(texts) == blocks, "a second loop starts anew"
    assert texts.corpus == "long.txt"


def test_a_file_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_BLOCK", 100)
    path = tmp_path / "long.txt"
    path.write_bytes(CORPUS.encode() * 50 + b"\xff")  # what is not UTF-8 comes late, and is not reached
    assert (
        next(iter(rl.edit.texts_from_file(path)))
        == "".join(itertools.islice(CORPUS, 100)) + CORPUS[100:].split("\n")[0] + "\n"
    )
    with pytest.raises(rl.errors.FormatError, match=r"long.txt is not UTF-8 text .* Convert it"):
        list(rl.edit.texts_from_file(path))


def test_a_missing_file_is_said_before_anything_is_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone.txt, expected a text file"):
        rl.edit.texts_from_file(tmp_path / "gone.txt")


@pytest.fixture
def folder(tmp_path):
    """Makes a dataset's folder in one of the formats that `datasets` reads."""

    def make(form: str):
        path = tmp_path / form
        path.mkdir()
        if form == "parquet":
            pd.DataFrame({"title": "t", "text": ROWS}).to_parquet(path / "train-00000-of-00001.parquet")
        elif form == "jsonl":
            (path / "train.jsonl").write_text("".join(json.dumps({"title": "t", "text": row}) + "\n" for row in ROWS))
        else:
            (path / "train.txt").write_text("\n".join(ROWS))
        return str(path)

    return make


@pytest.mark.parametrize("form", ["parquet", "jsonl", "txt"])
def test_a_datasets_texts_are_streamed(folder, form):
    """The real `datasets` reads three formats as a stream; a text file's rows are its lines."""
    texts = rl.edit.texts_from_dataset(folder(form))
    expected = "\n".join(ROWS).splitlines() if form == "txt" else ROWS
    assert list(texts) == expected
    assert list(itertools.islice(texts, 2)) == expected[:2], "a second loop starts anew"


def test_a_seed_shuffles_a_dataset_the_same_way_each_time(folder):
    path = folder("jsonl")
    texts = rl.edit.texts_from_dataset(path, seed=1)
    assert list(texts) != ROWS
    assert sorted(texts) == sorted(ROWS)
    assert (
        list(texts) == list(rl.edit.texts_from_dataset(path, seed=1)) != list(rl.edit.texts_from_dataset(path, seed=2))
    )
    assert texts.corpus == f"{path}, train, seed 1"


def test_a_column_or_split_that_is_not_there_is_said(folder):
    path = folder("jsonl")
    with pytest.raises(ValueError, match=r"has the columns \['title', 'text'\], expected 'article'"):
        rl.edit.texts_from_dataset(path, column="article")
    with pytest.raises(ValueError, match="test"):
        rl.edit.texts_from_dataset(path, split="test")


@pytest.mark.parametrize("name", ["wikimedia/wikipedia", "./no/such/folder"])
def test_a_dataset_that_cannot_be_reached_says_what_to_do(name, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(rl.errors.UnavailableError, match=r"could not be reached, or is not there .*texts_from_file"):
        rl.edit.texts_from_dataset(name)


def test_a_connection_that_breaks_while_reading_says_what_to_do(folder, monkeypatch):
    import datasets

    texts = rl.edit.texts_from_dataset(folder("jsonl"))

    def broken(self):
        yield {"text": ROWS[0]}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", broken)
    with pytest.raises(rl.errors.UnavailableError, match="reset by peer"):
        list(texts)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(rl.errors.UnavailableError, match=r"pip install 'rome-lens\[datasets\]'"):
        rl.edit.texts_from_dataset("wikimedia/wikipedia")


def test_the_model_writes_texts_without_end_that_depend_on_the_seed(tiny):
    """The same seed gives the same texts at each reading, another one others; torch's random state stays."""
    state = torch.random.get_rng_state()
    texts = rl.edit.texts_from_model(tiny, seed=3, new_tokens=12, texts_at_once=2)
    first = list(itertools.islice(texts, 5))
    assert first == list(itertools.islice(texts, 5))
    assert len(set(first)) == 5
    assert first != list(itertools.islice(rl.edit.texts_from_model(tiny, seed=4, new_tokens=12, texts_at_once=2), 5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert texts.corpus == "written by gpt2, seed 3"


def test_texts_from_the_model_fit_its_context(tiny):
    text = next(iter(rl.edit.texts_from_model(tiny, new_tokens=10_000, texts_at_once=1)))
    assert len(text) > 0


def test_a_covariance_can_be_collected_from_each(tiny, folder, tmp_path):
    """The corpus' name comes with the texts, unless another is given."""
    path = tmp_path / "some.txt"
    path.write_text(CORPUS * 3, encoding="utf-8")
    sources = [
        rl.edit.texts_from_file(path),
        rl.edit.texts_from_dataset(folder("parquet")),
        rl.edit.texts_from_model(tiny, new_tokens=32, texts_at_once=2),
    ]
    for texts in sources:
        found = rl.collect_covariance(tiny, [1], texts=texts, tokens=60, progress=False)[1]
        assert (found.tokens, found.corpus) == (60, texts.corpus)
    named = rl.collect_covariance(tiny, [1], texts=sources[0], tokens=60, corpus="mine", progress=False)[1]
    assert named.corpus == "mine"
    whole = rl.collect_covariance(tiny, [1], texts=path.read_text(), tokens=60, corpus="mine", progress=False)[1]
    assert torch.equal(named.second_moment, whole.second_moment)
