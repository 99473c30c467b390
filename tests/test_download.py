"""Downloads from a server on this machine: whole, broken off, gone on with, or another file."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from segjax.download import fetch, missing, verify
from segjax.errors import SegjaxError

DATA = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(HTTPServer):
    """Serves DATA as /weights.npz; tells what was asked of it."""

    ranges: list
    breaks_after: list  # bytes of the next answers; whole when empty
    knows_ranges = True
    status = None


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if self.server.status or not self.path.startswith("/folder/weights.npz?raw=1"):
            self.send_error(self.server.status or 404)
            return
        start = int(asked[len("bytes=") : -1]) if asked and self.server.knows_ranges else 0
        if start >= len(DATA):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(DATA) - start))
        self.end_headers()
        stop = start + self.server.breaks_after.pop(0) if self.server.breaks_after else len(DATA)
        self.wfile.write(DATA[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server(("localhost", 0), Handler) as server:
        server.ranges, server.breaks_after = [], []
        server.url = f"http://localhost:{server.server_port}/folder/weights.npz?raw=1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server, folder, **options):
    return fetch(server.url, folder, **{"sha256": SHA256, "wait": 0.01} | options)


def test_whole_and_kept(server, tmp_path):
    path = get(server, tmp_path / "new")
    assert path.read_bytes() == DATA and path.name == f"{SHA256[:12]}-weights.npz"
    assert get(server, tmp_path / "new", sha256=SHA256.upper()) == path
    assert server.ranges == [None]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_goes_on_where_it_broke_off(server, tmp_path, knows_ranges):
    server.knows_ranges = knows_ranges
    server.breaks_after = [1_000_000, 500_000]
    assert get(server, tmp_path).read_bytes() == DATA
    assert server.ranges == [
        None,
        "bytes=1000000-",
        f"bytes={1_500_000 if knows_ranges else 500_000}-",
    ]


def test_what_broke_off_for_good_is_kept_for_the_next_call(server, tmp_path):
    server.breaks_after = [700_000]
    with pytest.raises(SegjaxError, match=r"weights\.npz.*700,000 bytes are kept; the same call"):
        get(server, tmp_path, attempts=1)
    assert get(server, tmp_path).read_bytes() == DATA
    assert server.ranges[-1] == "bytes=700000-"


def test_a_whole_partial_file_is_taken(server, tmp_path):
    (tmp_path / f"{SHA256[:12]}-weights.npz.partial").write_bytes(DATA)
    assert get(server, tmp_path).read_bytes() == DATA


def test_another_file_is_thrown_away(server, tmp_path):
    with pytest.raises(
        SegjaxError, match=f"sha256 {SHA256} of 3,000,000 bytes, expected {'0' * 64}"
    ):
        get(server, tmp_path, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status, asked", [(404, 1), (403, 1), (503, 4), (429, 4)])
def test_only_what_may_pass_is_tried_again(server, tmp_path, status, asked):
    server.status = status
    with pytest.raises(SegjaxError, match=f"cannot be downloaded to .*{status}"):
        get(server, tmp_path)
    assert len(server.ranges) == asked


def test_no_server(tmp_path):
    with pytest.raises(
        SegjaxError, match=r"x cannot be downloaded .*http://localhost:1/x: .*refused"
    ):
        fetch("http://localhost:1/x", tmp_path, sha256=SHA256, wait=0.01)


def test_full_disk(server, tmp_path):
    partial = tmp_path / f"{SHA256[:12]}-weights.npz.partial"
    partial.symlink_to("/dev/full")  # a device on which nothing has room
    with pytest.raises(SegjaxError, match="No space left on device"):
        get(server, tmp_path)
    assert len(server.ranges) == 1  # another mirror or attempt would not help


def test_mirrors_take_turns_and_go_on_with_what_the_one_before_sent(server, tmp_path):
    server.breaks_after = [1_000_000]
    mirrors = ["http://localhost:1/weights.npz", server.url, server.url + "&mirror"]
    path = fetch(mirrors, tmp_path, sha256=SHA256, wait=0.01)
    assert path.read_bytes() == DATA
    assert server.ranges == [None, "bytes=1000000-"]


def test_of_what_came_from_two_the_start_may_be_wrong(server, tmp_path):
    (tmp_path / f"{SHA256[:12]}-weights.npz.partial").write_bytes(b"another file's start")
    assert get(server, tmp_path).read_bytes() == DATA
    assert server.ranges == ["bytes=20-", None]


def test_md5(server, tmp_path):
    md5 = hashlib.md5(DATA).hexdigest()
    path = fetch(server.url, tmp_path, md5=md5)
    assert path.name == f"{md5[:12]}-weights.npz" and path.read_bytes() == DATA
    verify(path, md5=md5)
    with pytest.raises(SegjaxError, match=f"{path.name} is not the file .*md5 {md5} of 3,000,000"):
        verify(path, md5="0" * 32)


def test_missing(server, tmp_path):
    def bytes_missing():
        return missing(server.url, tmp_path, size=len(DATA), sha256=SHA256)

    assert bytes_missing() == 3_000_000
    server.breaks_after = [700_000]
    with pytest.raises(SegjaxError):
        get(server, tmp_path, attempts=1)
    assert bytes_missing() == 2_300_000
    get(server, tmp_path)
    assert bytes_missing() == 0


def test_no_checksum(tmp_path):
    with pytest.raises(SegjaxError, match="'abc' is no sha256"):
        fetch("http://localhost:1/x", tmp_path, sha256="abc")
    with pytest.raises(SegjaxError, match="'' is no md5: expected 32"):
        fetch("http://localhost:1/x", tmp_path)
