"""A real server on a real socket: what it answers, what it refuses, and that it stays alive."""

import http.client
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

import segjax
from segjax.commands import exported
from segjax.commands.serve import make_server, serve
from segjax.data.augment import Normalise
from segjax.errors import SegjaxError
from segjax.models import UNet
from segjax.serving.outlines import decode_rle
from segjax.serving.protocol import ImpatientProtocol
from segjax.serving.uploads import Limits

RNG = np.random.default_rng(0)
LIMITS = Limits(megabytes=0.2, megapixels=0.02, upload_seconds=1, seconds=60, bucket=8)
PIXELS = RNG.integers(0, 256, (20, 26, 3), np.uint8)


@contextmanager
def running(run, limits=LIMITS):
    """The port of a server in a thread."""
    server = make_server(run, limits=limits)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def save_weights(folder, **fields):
    model = UNet(2, widths=(4, 6))
    shape = (1, 8, 8, 3)
    variables = model.init(jax.random.key(6), jnp.zeros(shape))
    fields = {"classes": ("none", "cell"), "palette": ((0, 0, 0), (200, 90, 20))} | fields
    made = segjax.Segmenter(model=model, variables=variables, normalise=Normalise(), **fields)
    exported.save(folder / "weights.safetensors", made)
    return folder / "weights.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def port(weights):
    with running(weights) as port:
        yield port


def png(pixels=PIXELS, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def ask(port, method="POST", where="/segment", body=None, headers=()):
    """Status, content and headers of an answer."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        link.request(method, where, body, dict(headers))
        answer = link.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        link.close()


def refused(port, status, told, **request):
    got, content, _ = ask(port, **request)
    assert got == status, content
    assert re.search(told, json.loads(content)["error"]), content
    assert ask(port, "GET", "/health")[0] == 200


def labels_of(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_mask_is_what_predict_gives(port, weights):
    """Where the sides are multiples of the bucket; else but for the last rows and columns."""
    pixels = PIXELS[:16, :24]
    want = segjax.load(weights).predict(pixels)
    assert len(np.unique(want)) == 2
    status, content, headers = ask(port, body=png(pixels))
    assert status == 200 and headers["Content-Type"] == "image/png"
    np.testing.assert_array_equal(labels_of(content), want)
    other = labels_of(ask(port, where="/segment?as=mask", body=png())[1])
    assert other.shape == PIXELS.shape[:2]
    halo = segjax.load(weights).model.geometry.halo
    want = segjax.load(weights).predict(PIXELS)
    np.testing.assert_array_equal(other[:-halo, :-halo], want[:-halo, :-halo])


def test_every_form_tells_the_same(port):
    mask = labels_of(ask(port, body=png())[1])
    overlay = labels_of(ask(port, where="/segment?as=overlay", body=png())[1])
    np.testing.assert_array_equal((overlay != PIXELS).any(-1) <= (mask == 1), True)
    coco = json.loads(ask(port, where="/segment?as=coco", body=png())[1])
    for one in coco["annotations"]:
        np.testing.assert_array_equal(decode_rle(one["segmentation"]), mask == one["category_id"])
    _, content, headers = ask(port, where="/segment?as=geojson", body=png())
    assert headers["Content-Type"] == "application/geo+json"
    areas = [feature["properties"]["area"] for feature in json.loads(content)["features"]]
    assert sum(areas) == (mask == 1).sum()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_kinds_of_pictures(port, kind):
    status, content, _ = ask(port, body=png(format=kind))
    assert status == 200 and labels_of(content).shape == (20, 26)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claims(width, height, content=b""):
    """A PNG that says so large it is."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="../../etc/passwd"\r\n\r\n'
    b"x\r\n--x--"
)
HOSTILE = {
    "nothing": (b"", 400, "has no body"),
    "text": (b"no picture", 415, "no picture of a kind that is taken: PNG, JPEG"),
    "web page": (b"<!doctype html><p>404", 415, "no picture of a kind"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "no picture of a"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no picture of a kind"),
    "zip": (b"PK\3\4" + bytes(99), 415, "no picture of a kind"),
    "pickle": (b"\x80\4cos\nsystem\n(S'true'\ntR.", 415, "no picture of a kind"),
    "numpy": (b"\x93NUMPY\1\0" + bytes(200), 415, "no picture of a kind"),
    "cut png": (png()[:400], 400, "cannot be read as a picture"),
    "cut jpeg": (png(format="JPEG")[:300], 400, "cannot be read as a picture"),
    "cut tiff": (png(format="TIFF")[:300], 400, "(?i)cannot be|not a picture"),
    "head alone": (png()[:33], 415, "no picture of a kind"),
    "zero wide": (claims(0, 10), 415, "no picture of a kind"),
    "hollow": (claims(20, 20, zlib.compress(b"")), 400, "cannot be read as a picture"),
    "gigapixel": (claims(32_768, 32_768, zlib.compress(bytes(1000))), 413, "pixels"),
    "too many pixels": (claims(200, 200), 413, "200×200 are 40,000 pixels, more than 20,000"),
    "bomb": (png(np.zeros((3000, 3000), np.uint8)), 413, "3000×3000 are 9,000,000 pixels"),
    "too many bytes": (png() + bytes(300_000), 413, "More than 200,000 bytes"),
    "16 bits": (png(np.full((9, 9), 60_000, np.uint16)), 400, "16-bit picture"),
    "float": (tiff(np.full((9, 9), 0.5, np.float32)), 400, "float picture"),
    "nan": (tiff(np.full((9, 9), np.nan, np.float32)), 400, "float picture"),
    "lying tiff": (
        tiff(np.zeros((9, 9), np.uint8)).replace(b"\x09\0\0\0", b"\xff\xff\0\0"),
        413,
        "",
    ),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_picture_is_refused(port, name):
    body, status, told = HOSTILE[name]
    refused(port, status, told, body=body)


@pytest.mark.parametrize(
    "status, told, request_",
    [
        (415, "not a form", {"headers": {"Content-Type": "multipart/form-data; boundary=x"}}),
        (415, "without a content encoding", {"headers": {"Content-Encoding": "gzip"}}),
        (400, "as='\\.\\./\\.\\./etc': expected one of mask", {"where": "/segment?as=../../etc"}),
        (404, "POST a picture to /segment", {"where": "/../../etc/passwd"}),
        (404, "POST a picture to /segment", {"where": "/%2e%2e/%00"}),
        (405, "read by GET", {"where": "/health"}),
        (405, "POST pictures", {"method": "GET", "where": "/segment"}),
        (405, "POST pictures", {"method": "DELETE", "where": "/segment"}),
    ],
)
def test_other_requests_are_refused(port, status, told, request_):
    refused(port, status, told, **({"body": FORM} | request_))


def raw(port, *parts, wait=0.0):
    """What is answered to bytes that are sent in parts."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        try:
            for part in parts:
                link.sendall(part)
                time.sleep(wait)
        except OSError:  # it was closed meanwhile; what was answered is still to be read
            pass
        got = b""
        try:
            while more := link.recv(65536):
                got += more
        except ConnectionResetError:
            pass
        return got


POST = b"POST /segment HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "head, told",
    [
        (b"Content-Length: 99999999999999\r\n\r\n", b" 413 "),
        (b"Content-Length: -5\r\n\r\n", b" 400 "),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", b" 400 "),
        (b"Transfer-Encoding: gzip\r\n\r\n", b" 400 "),
        (b"X: " + b"a" * 200_000 + b"\r\n\r\n", b" 400 "),
        (b"X\0: a\r\n\r\n", b" 400 "),
        (b"\xff\xfe\r\n\r\n", b" 400 "),
    ],
)
def test_tricks_with_headers(port, head, told):
    got = raw(port, POST + head)
    assert told in got.partition(b"\r\n")[0], got[:200]
    assert ask(port, "GET", "/health")[0] == 200


def test_a_slow_upload_is_given_up(port):
    began = time.perf_counter()
    got = raw(port, POST + b"Content-Length: 1000\r\n\r\n", *[b"x"] * 30, wait=0.1)
    assert b" 408 " in got and b"longer than 1 s" in got
    assert time.perf_counter() - began < 10


def test_an_endless_upload_is_cut_off(port):
    """In chunks, that name no length."""
    part = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    got = raw(port, POST + b"Transfer-Encoding: chunked\r\n\r\n", *[part] * 50, wait=0.005)
    assert not got or (b" 413 " in got and b"200,000 bytes" in got)
    assert ask(port, "GET", "/health")[0] == 200


def test_slow_headers_are_given_up(port, monkeypatch):
    monkeypatch.setattr(ImpatientProtocol, "seconds", 0.3)
    began = time.perf_counter()
    assert raw(port, *[POST[:5], *[b"a"] * 30], wait=0.05) == b""
    assert time.perf_counter() - began < 5


def test_a_client_that_goes_away_harms_nobody(port):
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(POST + b"Content-Length: 1000\r\n\r\nabc")
    assert ask(port, body=png())[0] == 200


def test_fifty_clients_at_once(port):
    """Of several sizes: none fails, each gets its own picture's labels, memory stays bounded."""
    pictures = [np.ascontiguousarray(np.roll(PIXELS, i, 0)[: (20, 12)[i % 2]]) for i in range(50)]
    want = [ask(port, body=png(pixels))[1] for pixels in pictures[:4]]
    before = psutil.Process().memory_info().rss
    with ThreadPoolExecutor(50) as clients:
        for _ in range(2):
            answers = list(clients.map(lambda p: ask(port, body=png(p)), pictures))
            assert [status for status, *_ in answers] == [200] * 50
            for pixels, (_, content, _) in zip(pictures, answers, strict=True):
                assert labels_of(content).shape == pixels.shape[:2]
            for one, (_, content, _) in zip(want, answers, strict=False):
                assert content == one
    assert psutil.Process().memory_info().rss - before < 300e6
    told = ask(port, "GET", "/metrics")[1].decode()
    values = dict(re.findall(r"^(\w+(?:\{.*\})?) ([\d.]+)$", told, re.MULTILINE))
    assert float(values['segjax_requests_total{status="200"}']) >= 104
    assert float(values["segjax_batches_total"]) < float(values["segjax_pictures_total"])
    assert float(values["segjax_requests_inside"]) == 0


def test_who_comes_when_all_is_full_is_sent_away(weights):
    with running(weights, Limits(waiting=1, upload_seconds=5)) as port:
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(POST + b"Content-Length: 1000\r\n\r\nabc")
            time.sleep(0.2)
            status, content, headers = ask(port, body=png())
            assert status == 503 and headers["Retry-After"] == "5"
            assert "1 requests are waiting already" in json.loads(content)["error"]
        time.sleep(0.2)
        assert ask(port, body=png())[0] == 200


def test_what_takes_too_long_is_given_up(weights, monkeypatch):
    slow = threading.Event()
    predict = segjax.Segmenter.predict

    def wait(self, *given):
        slow.wait(5)
        return predict(self, *given)

    monkeypatch.setattr(segjax.Segmenter, "predict", wait)
    with running(weights, Limits(seconds=0.3)) as port:
        status, content, _ = ask(port, body=png())
        assert status == 504 and "longer than 0.3 s" in json.loads(content)["error"]
        slow.set()


def test_a_prediction_that_fails_harms_nobody_else(weights, monkeypatch):
    predict = segjax.Segmenter.predict

    def fail(self, images):
        if images.shape[1] > 100:
            raise RuntimeError("no memory")
        return predict(self, images)

    monkeypatch.setattr(segjax.Segmenter, "predict", fail)
    with running(weights) as port:
        status, content, _ = ask(port, body=png(np.zeros((120, 8, 3), np.uint8)))
        assert status == 500 and "failed at this picture" in json.loads(content)["error"]
        assert ask(port, body=png())[0] == 200


def test_pictures_by_ranges(tmp_path):
    """Floats in a TIFF, scaled by what the network was trained with; NaN and others refused."""
    path = save_weights(tmp_path, ranges=((0, 1),))
    with running(path, Limits(megapixels=0.01)) as port:
        good = RNG.random((16, 24, 3), np.float32)
        status, content, _ = ask(port, body=tiff(good, photometric="rgb"))
        want = segjax.load(path).predict(good * 255)
        assert status == 200
        assert labels_of(content)[:8, :16].shape == want[:8, :16].shape
        broken = good.copy()
        broken[3, 4] = np.nan
        refused(port, 400, "values are NaN", body=tiff(broken, photometric="rgb"))
        refused(port, 400, "outside the stated range", body=tiff(good + 9, photometric="rgb"))
        many = np.zeros((40, 40, 40), np.uint8)
        refused(port, 413, "a TIFF of 64,000 samples", body=tiff(many, photometric="minisblack"))
        refused(port, 400, "cannot be read as a TIFF", body=b"II*\0" + bytes(50))


def test_the_page_and_what_it_asks_for(port):
    status, content, headers = ask(port, "GET", "/")
    text = content.decode()
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text), "it needs other files"
    told = json.loads(ask(port, "GET", "/health")[1])
    assert told["classes"][1] == {"label": 1, "name": "cell", "colour": [200, 90, 20]}
    assert told["limits"] == {"megabytes": 0.2, "megapixels": 0.02}


def test_a_port_that_is_taken(weights):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SegjaxError, match=rf"127.0.0.1:{port}: cannot be listened on: .*--port"
        ):
            serve(weights, port=port)


def test_limits_are_more_than_nothing():
    with pytest.raises(SegjaxError, match="batch is 0; expected more than 0"):
        Limits(batch=0)
