"""Data sets come once, whole or not at all; what cannot come says what to do. No test reaches a network."""

import json
from pathlib import Path

import pytest

import rome_lens as rl
from rome_lens import downloads
from tests.test_datasets import KNOWN, RECORD
from tests.test_question_datasets import KNOWEDIT, SNIPPETS, ZSRE

NAMES = {
    "counterfact": (rl.load_counterfact, RECORD),
    "known_1000": (rl.load_known_facts, KNOWN),
    "zsre_mend_eval": (rl.load_zsre, ZSRE),
    "attribute_snippets": (rl.load_attribute_snippets, SNIPPETS),
    "wiki_recent": (lambda: rl.load_knowedit("wiki_recent"), KNOWEDIT),
    "wiki_counterfact": (lambda: rl.load_knowedit("wiki_counterfact"), KNOWEDIT),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and addresses of files in a folder beside it."""
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setattr(downloads.platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr(downloads, "ADDRESSES", {name: (folder / name).as_uri() for name in NAMES})
    return tmp_path / "cache" / "datasets"


@pytest.mark.parametrize("name", NAMES)
def test_each_reader_downloads_its_own_file_once(cache, tmp_path, name):
    read, record = NAMES[name]
    served = tmp_path / "server" / name
    served.write_text(json.dumps([record]), encoding="utf-8")
    first = read()
    served.unlink()
    assert read() == first
    assert [path.name for path in cache.iterdir()] == [f"{name}.json"]


def test_what_is_out_of_reach_says_what_to_do(cache):
    with pytest.raises(rl.UnavailableError, match=r"zsre_mend_eval could not be .*another machine and pass the file"):
        rl.load_zsre()
    assert not list(cache.rglob("*.*"))


def test_a_login_page_is_not_kept(cache, tmp_path):
    """What hotel networks and proxies answer instead of the file."""
    (tmp_path / "server" / "counterfact").write_text("<html>Log in</html>")
    with pytest.raises(rl.UnavailableError, match="is not JSON"):
        rl.load_counterfact()
    assert list(cache.iterdir()) == []


def test_half_a_file_is_not_kept(cache, tmp_path, monkeypatch):
    (tmp_path / "server" / "counterfact").write_text("[]")
    plain = downloads.urlopen

    def longer(address, timeout):
        answer = plain(address, timeout=timeout)
        answer.headers.replace_header("Content-Length", "20")
        return answer

    monkeypatch.setattr(downloads, "urlopen", longer)
    with pytest.raises(rl.UnavailableError, match="2 of 20 bytes came"):
        rl.load_counterfact()
    assert list(cache.iterdir()) == []


def test_the_addresses_are_those_that_were_published():
    authors = {name for name, address in downloads.ADDRESSES.items() if "//rome.baulab.info/data/dsets/" in address}
    assert authors == {"counterfact", "known_1000", "zsre_mend_eval", "attribute_snippets"}
    assert set(downloads.ADDRESSES) == set(NAMES)
    assert all(address.startswith("https://") for address in downloads.ADDRESSES.values())
