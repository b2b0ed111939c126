"""Data sets come once, whole or not at all; what cannot come says what to do. The network is a server of the tests."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import rome_lens as rl
from rome_lens.data import downloads
from tests.data.test_question_readers import KNOWEDIT, SNIPPETS, ZSRE
from tests.data.test_readers import KNOWN, RECORD

NAMES = {
    "counterfact": (rl.load_counterfact, RECORD),
    "known_1000": (rl.data.load_known_facts, KNOWN),
    "zsre_mend_eval": (rl.data.load_zsre, ZSRE),
    "attribute_snippets": (rl.data.load_attribute_snippets, SNIPPETS),
    "wiki_recent": (lambda **options: rl.data.load_knowedit("wiki_recent", **options), KNOWEDIT),
    "wiki_counterfact": (lambda **options: rl.data.load_knowedit("wiki_counterfact", **options), KNOWEDIT),
}
PEM = Path(__file__).parent / "localhost.pem"  # a key and its certificate, which only these tests trust
Answer = Callable[[BaseHTTPRequestHandler], None]


def page(content: str | bytes, status: int = 200, length: int | None = None, **headers: str) -> Answer:
    """An answer; `length`: what the server says of it, if that is not true."""
    body = content.encode() if isinstance(content, str) else content

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body) if length is None else length), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def in_chunks(body: str, coding: str = "chunked") -> Answer:
    """An answer whose length is not announced; its chunks are the body's own."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if coding:
            request.send_header("Transfer-Encoding", coding)
        request.end_headers()
        request.wfile.write(body.encode())

    return answer


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Answer]]:
    """What a server answers to whom asks for a data set; 404 for what is not there."""
    answers: dict[str, Answer] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.get(self.path.strip("/"), page("<html>Not found</html>", 404))(self)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
    monkeypatch.setenv("no_proxy", "localhost")
    address = f"https://localhost:{server.server_port}"
    monkeypatch.setattr(downloads, "ADDRESSES", {name: f"{address}/{name}" for name in NAMES})
    yield answers
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where data sets are kept, in an empty cache."""
    monkeypatch.setattr(downloads.platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    return tmp_path / "cache" / "datasets"


@pytest.mark.parametrize("name", NAMES)
def test_each_reader_downloads_its_own_file_once(served, cache, name):
    read, record = NAMES[name]
    served[name] = page(json.dumps([record]))
    first = read()
    del served[name]
    assert read() == first
    assert [path.name for path in cache.iterdir()] == [f"{name}.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_kept_file_is_fetched_again_on_demand_and_stays_where_that_fails(served, cache, name):
    read, record = NAMES[name]
    served[name] = page(json.dumps([record]))
    first = read()
    served[name] = page(json.dumps([record, record | ({"case_id": 8} if "case_id" in record else {})]))
    assert read() == first
    assert read(refresh=True) == read() != first
    again = read()
    del served[name]
    with pytest.raises(rl.errors.UnavailableError, match="404"):
        read(refresh=True)
    assert read() == again


def test_a_path_is_not_fetched_again(tmp_path):
    with pytest.raises(ValueError, match="refresh=True fetches a data set again, but a file was given"):
        rl.load_counterfact(tmp_path / "mine.json", refresh=True)


WHOLE = json.dumps([RECORD])


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (page("<html>Log in</html>"), "is not JSON"),  # what hotel networks and proxies answer
        (page('{"error": "Entry not found"}'), "no list of records with 'requested_rewrite'.*Entry not found"),
        (page('[{"error": "Try again"}]'), "no list of records with 'requested_rewrite'"),
        (page(json.dumps([KNOWN])), "no list of records with 'requested_rewrite'"),  # another data set
        (page("[]"), "no list of records"),
        (page(""), "is not JSON"),
        (page(WHOLE, 404), "404"),
        (page(WHOLE, 500), "500"),
        (page(WHOLE, 503), "503"),
        (page(WHOLE, 203), "the status 203"),
        (page(WHOLE, length=len(WHOLE) + 20), rf"{len(WHOLE)} of {len(WHOLE) + 20} bytes came"),
        (page(WHOLE[:-9]), "is not JSON"),
        (page(WHOLE, length=1 << 40), "1099511627776 bytes long, expected at most"),
        (page(WHOLE, **{"Content-Length": "many"}), "tells no length"),
        (page("", 302, Location="http://localhost/counterfact"), "http://localhost/counterfact would not be read by"),
        (page("", 301, Location="file:///etc/hostname"), "is not allowed"),
        (page("", 302, Location="/counterfact"), "infinite loop"),
    ],
)
def test_what_is_not_the_whole_data_set_is_not_kept(served, cache, answer, says):
    served["counterfact"] = answer
    with pytest.raises(
        rl.errors.UnavailableError, match=rf"(?s)counterfact could not be.*{says}.*and pass the file's path"
    ):
        rl.load_counterfact()
    assert list(cache.iterdir()) == []


def test_redirects_by_https_are_followed(served, cache):
    """The hub answers with the address of another server."""
    served |= {"counterfact": page("", 302, Location="/elsewhere"), "elsewhere": page(WHOLE)}
    assert len(rl.load_counterfact()) == 1


def test_what_comes_in_chunks_is_kept_once_its_end_has_come(served, cache):
    served["counterfact"] = in_chunks(f"{len(WHOLE):x}\r\n{WHOLE}\r\n0\r\n\r\n")
    assert len(rl.load_counterfact()) == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (in_chunks(WHOLE, coding=""), "tells no length, so that nobody can tell"),
        (in_chunks(f"{len(WHOLE):x}\r\n{WHOLE}\r\n"), "IncompleteRead"),
        (in_chunks(f"{len(WHOLE):x}\r\n{WHOLE}"), "IncompleteRead"),
        (in_chunks(f"{len(WHOLE) + 9:x}\r\n{WHOLE}"), "IncompleteRead"),
    ],
)
def test_what_broke_off_at_a_records_end_is_not_kept(served, cache, answer, says):
    """It is JSON, so that only the server's word on its length or its end tells."""
    served["counterfact"] = answer
    with pytest.raises(rl.errors.UnavailableError, match=says):
        rl.load_counterfact()
    assert list(cache.iterdir()) == []


def test_a_server_that_nobody_vouches_for_is_not_read(served, cache, monkeypatch):
    served["counterfact"] = page(WHOLE)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(rl.errors.UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        rl.load_counterfact()


def test_an_address_without_https_is_not_opened(cache, monkeypatch):
    monkeypatch.setitem(downloads.ADDRESSES, "counterfact", "http://localhost:9/counterfact")
    with pytest.raises(rl.errors.UnavailableError, match="would not be read by HTTPS"):
        rl.load_counterfact()


def test_more_bytes_than_the_server_told_end_at_the_bound(served, cache, monkeypatch):
    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"1388\r\n" + b" " * 5000)

    served["counterfact"] = endless
    monkeypatch.setattr(downloads, "MOST_JSON_BYTES", 1000)
    with pytest.raises(rl.errors.UnavailableError, match="bytes long, expected at most 1000"):
        rl.load_counterfact()


@pytest.mark.parametrize(("pause", "says"), [(3.0, "timed out"), (0.1, r"only \d+ bytes came in")])
def test_a_server_that_stops_or_drips_is_left(served, cache, pause, says):
    done = threading.Event()

    def slowly(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        while not done.wait(pause):
            try:
                request.wfile.write(b"[")
            except OSError:
                return

    served["counterfact"] = slowly
    begun = time.monotonic()
    with pytest.raises(rl.errors.UnavailableError, match=says):
        downloads.downloaded("counterfact", timeout=0.4)
    done.set()
    assert time.monotonic() - begun < 2.5
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_fetched(cache, monkeypatch):
    cache.parent.write_text("a file where the folder goes")
    monkeypatch.setattr(downloads, "_open", lambda *arguments: pytest.fail("fetched"))
    with pytest.raises(rl.errors.UnavailableError, match=r"cannot be kept in the cache: .* pass the file's path"):
        rl.load_counterfact()


def test_a_full_disk_is_told(served, cache, monkeypatch):
    """Nothing half written is left, and what the error says is about the disk, not about the network."""
    served["counterfact"] = page(WHOLE)

    def full(name, timeout):
        yield b"["
        raise AssertionError("went on after a full disk")

    class Full:
        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *reason):
            self._file.close()

        def write(self, block):
            raise OSError(28, "No space left on device")

    plain = Path.open
    monkeypatch.setattr(downloads, "_blocks", full)
    monkeypatch.setattr(Path, "open", lambda path, *mode, **k: Full(plain(path, *mode, **k)) if "wb" in mode else None)
    with pytest.raises(rl.errors.UnavailableError, match=r"no room for .*No space left.*Free some"):
        rl.load_counterfact()
    assert list(cache.iterdir()) == []


def test_the_addresses_are_those_that_were_published():
    authors = {name for name, address in downloads.ADDRESSES.items() if "//rome.baulab.info/data/dsets/" in address}
    assert authors == {"counterfact", "known_1000", "zsre_mend_eval", "attribute_snippets"}
    assert set(downloads.ADDRESSES) == set(NAMES) == set(downloads._FIELDS)
    assert all(address.startswith("https://") for address in downloads.ADDRESSES.values())
