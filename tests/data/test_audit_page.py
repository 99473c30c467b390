"""An audit told in the terminal, as JSON and as a page."""

import io
import json

import numpy as np
from rich.console import Console

from segjax.data import audit_page
from segjax.data.audit import Audit, Case, Kind, Split


def split(pixels, ignored=0):
    histogram = np.zeros((3, 256), np.int64)
    return Split(
        examples=3,
        sizes={(4, 6): 2},
        counts=np.array([pixels, [0, 0, 0]]),
        ignored=ignored,
        histogram=histogram,
    )


FOUND = Audit(
    classes=("<sky>", "[road]", "tree"),
    splits={"train": split([60, 20, 0], 20), "val": split([50, 50, 0])},
    findings={
        Kind(True, "bad file"): [Case((("train", i),), f"<{i}>.png is bad") for i in range(40)],
        Kind(False, "twins", "Remove one."): [Case((("train", 1), ("val", 2)), "a = b")],
    },
)


def drawn(found=FOUND):
    console = Console(file=io.StringIO(), width=200)
    for part in audit_page.renderables(found):
        console.print(part)
    return console.file.getvalue()


def test_the_terminal():
    told = drawn()
    for text in (
        "<sky>",
        "[road]",
        "60.00%",
        "ignored",
        "train: 3 examples, of which 2 can be used; height × width: 4×6 (2); channels: 3.",
        "Classes without a pixel: tree.",
        "error: bad file (40)",
        "<2>.png is bad",
        "… and 37 more",
        "warning: twins (1)",
        "Remove one.",
    ):
        assert text in told
    assert "<3>.png" not in told


def test_json_holds_everything():
    stored = json.loads(audit_page.as_json(FOUND, {"train": [1.0, 2.0, 0.0]}))
    assert stored["classes"] == ["<sky>", "[road]", "tree"]
    assert stored["splits"]["train"]["sizes"] == [[4, 6, 2]]
    assert stored["splits"]["train"]["pixels"] == [60, 20, 0]
    assert stored["splits"]["train"]["ignored"] == 20
    assert stored["splits"]["train"]["class_weights"] == [1, 2, 0]
    assert stored["splits"]["val"]["class_weights"] is None
    bad, twins = stored["findings"]
    assert (bad["error"], bad["what"], len(bad["cases"])) == (True, "bad file", 40)
    assert twins["cases"] == [{"examples": [["train", 1], ["val", 2]], "text": "a = b"}]


def test_the_page_needs_no_other_file_and_shows_pictures():
    shown = []

    def draw(name, i):
        shown.append((name, i))
        return f"{name}: p{i}", [] if i == 0 else [np.zeros((4, 6, 3), np.uint8)]

    page = page_of(FOUND, draw)
    assert "&lt;sky&gt;" in page and "<sky>" not in page
    before, _, folded = page.partition("<details><summary>… and 35 more</summary>")
    assert "&lt;4&gt;.png is bad" in before and "&lt;5&gt;.png" not in before
    assert "&lt;39&gt;.png is bad" in folded
    assert "<title>Audit of /data/&lt;mine&gt;<" in page and "2026-11-24 12:00" in page
    assert 'name=viewport content="width=device-width' in page
    assert "<figcaption>train: p1<" in page
    assert page.count("class=swatch") == 2 and "background:rgb(1, 2, 3)" in page
    assert "<td>0.75\n" in page  # the weight of <sky> in train
    assert page.count("<svg") == 2 and page.count("<polyline") == 6
    assert "http" not in page and 'src="data:image/jpeg;base64,' in page
    assert {("train", 1), ("val", 2), ("train", 5)} <= set(shown)
    assert page.count("<figure>") == sum(i > 0 for _, i in shown) < 20


def page_of(found, draw):
    palette = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    weights = {"train": [0.75, 1.5, 0.0]}
    return audit_page.page(
        found,
        draw,
        title="/data/<mine>",
        when="2026-11-24 12:00",
        palette=palette,
        class_weights=weights,
    )


def test_nothing_found_is_said():
    clean = Audit(FOUND.classes, FOUND.splits, {})
    assert "Nothing was found to be wrong" in page_of(clean, lambda name, i: ("", []))
    assert not clean.failed and FOUND.failed
