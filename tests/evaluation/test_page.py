import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluated import HOSTILE, picture_made, result_made
from PIL import Image

from segjax.evaluation import page

VOID = {"meta", "img", "input", "br"}
OPTIONAL = {"li", "dt", "dd", "p", "option", "tr", "td", "th"}


class Reader(HTMLParser):
    """Reads a page strictly: what is opened must be closed, but for what HTML lets be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], []
        self.feed(text)
        self.close()
        assert [tag for tag in self.open if tag not in OPTIONAL] == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open[-1] in OPTIONAL - {tag}:
            self.open.pop()
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)

    def all(self, tag):
        return [attributes for found, attributes in self.found if found == tag]


def page_of(*runs, pictures=(), title="first", **options):
    legend = [("sky", (1, 2, 3)), ("wrong", (255, 40, 40))]
    text = page.page(runs, pictures, legend, title=title, when="2026-11-24 12:00", **options)
    return text, Reader(text)


FIGURE = {"value": 0.627, "metric": "mean_iou", "split": "val", "source": "Long et al., Table 2"}


def test_a_run_is_told_whole():
    text, read = page_of(result_made(published=[FIGURE]), pictures=[picture_made()])
    sections = [of["id"] for of in read.all("h2")]
    assert sections == [
        "scores",
        "pictures",
        "classes",
        "confusion",
        "calibration",
        "curves",
        "throughput",
        "recipe",
        "environment",
    ]
    links = [of["href"] for of in read.all("a")]
    assert links == [f"#{name}" for name in sections]
    told = " ".join(read.text)
    for expected in (
        "checkpoint of step 700, 12 pictures of split",
        "0.6100–0.7900",
        "Otsu",
        "Long et al., Table 2",
        "0.6270",
        "boundary IoU",
        "ECE 0.0300, MCE 0.1100",
        "unet_roads.py train",
        "31.4",
    ):
        assert expected in told
    assert text.count('<svg class="chart"') == 8


def test_it_loads_nothing_and_says_so_to_the_browser():
    text, read = page_of(result_made(), pictures=[picture_made()])
    assert not re.search(r"https?:|url\(|@import|<link", text)
    assert all(of["src"].startswith("data:image/webp;base64,") for of in read.all("img"))
    (policy,) = [of["content"] for of in read.all("meta") if "http-equiv" in of]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_names_are_text_wherever_they_stand():
    runs = [result_made(name, HOSTILE, seed=i) for i, name in enumerate(HOSTILE[:3])]
    for run in runs:
        for one, name in zip(run.scores["pictures"], HOSTILE, strict=False):
            one["id"] = name
        run.recipe["fields"][HOSTILE[0]] = HOSTILE[1]
        run.starts[0]["command"] = list(HOSTILE)
    pictures = [picture_made(name, HOSTILE[0], runs=HOSTILE[:3]) for name in HOSTILE]
    text, read = page_of(*runs, pictures=pictures, title=HOSTILE[0], notes=[HOSTILE[0]])
    assert len(read.all("script")) == 1 and "<script>alert" not in text
    plain, _ = page_of(result_made())
    assert set(re.findall(r"<(\w+)", text)) <= set(re.findall(r"<(\w+)", plain)) | {
        *("form", "label", "select", "option", "img", "input", "figure", "br", "b")
    }
    alts = {of["alt"] for of in read.all("img")}
    assert f"truth of {HOSTILE[1]}" in alts
    assert "".join(read.text).count(HOSTILE[3]) > 5


@pytest.mark.parametrize("part", [part for part in result_made().scores if part != "classes"])
def test_what_is_missing_is_left_out(part):
    _, whole = page_of(result_made())
    _, read = page_of(result_made(**{part: None}))
    gone = {of["id"] for of in whole.all("h2")} - {of["id"] for of in read.all("h2")}
    assert gone == {part} & {"confusion", "calibration", "pictures"} | (
        {"classes"} if part == "per_class" else set()
    )
    assert len("".join(read.text)) < len("".join(whole.text)) or part == "palette"
    page_of(result_made(), result_made("b", **{part: None}))
    page_of(result_made(**{part: None}), result_made("b"))


def test_a_run_of_which_little_is_known():
    result = result_made(**dict.fromkeys(result_made().scores))
    result.scores["classes"] = ["a"]
    result.records[:] = []
    result.starts[:] = []
    _, read = page_of(result)
    assert [of["id"] for of in read.all("h2")] == ["recipe"]


def test_several_runs_stand_side_by_side():
    runs = [result_made(name, seed=i) for i, name in enumerate("abc")]
    runs[2].recipe["fields"]["steps"] = 1
    pictures = [picture_made(runs=("a: ", "b: ", "c: "))]
    _, read = page_of(*runs, pictures=pictures)
    told = " ".join(read.text)
    assert "2 seeds of a, …" in told and "0.7050 ± 0.0071" in told
    assert "What differs." in told
    assert len(read.all("select")) == 2
    options = [of for of in read.all("option")]
    assert len(options) == 2 * 8 and [i for i, o in enumerate(options) if "selected" in o] == [
        1,
        10,
    ]
    held_out = re.findall(r'aria-label="Held-out mean IoU over steps">.*?</svg>', page_of(*runs)[0])
    assert len(set(re.findall(r"line (s\d)", held_out[0]))) == 3


@pytest.mark.parametrize("classes", [2, 21, 150])
def test_confusions_of_few_and_of_many_classes(classes):
    names = [f"class {i}" for i in range(classes)]
    text, read = page_of(result_made(names=names))
    matrix = re.search(r"<table class=.matrix.*?</table>", text, re.DOTALL)
    assert bool(matrix) == (classes < 150)
    if matrix:
        shares = [float(v) for v in re.findall(r'class="right" style="--v:([\d.]+)', matrix[0])]
        counts = np.array(result_made(names=names).scores["confusion"])
        np.testing.assert_allclose(shares, np.diag(counts) / counts.sum(1), atol=6e-4)
    assert ("Most frequent confusions" in text) == (classes > 2)
    assert bool(read.all("img")) == (classes == 150)


def test_a_class_without_truth_has_no_shares():
    matrix = [[0, 0], [3, 1]]
    text, _ = page_of(result_made(names=("a", "b"), confusion=matrix))
    rows = re.search(r"<table class=.matrix.*?</table>", text, re.DOTALL)[0]
    cells = [re.findall(r"<td[^>]*>([^<]*)", row) for row in re.findall(r"<tr>.*?</tr>", rows)[1:]]
    assert cells == [["–", "–"], ["75.0%", "25.0%"]]


def test_large_pictures_are_reduced_and_the_page_stays_small():
    pictures = [picture_made(f"p{i}", size=(900, 1600), seed=i) for i in range(6)]
    text, read = page_of(result_made(), pictures=pictures)
    assert len(text) < 5_000_000  # though all of it is noise
    assert {(of["width"], of["height"]) for of in read.all("img")} == {("707", "398")}
    assert "shown at 707×398 of 1600×900 pixels" in text
    assert "shown at" not in page_of(result_made(), pictures=[picture_made()])[0]


def test_colours_of_classes_are_kept_exactly():
    picture = picture_made()
    _, read = page_of(result_made(), pictures=[picture])
    for image, layer in zip(read.all("img"), picture.layers, strict=True):
        data = base64.b64decode(image["src"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as stored:
            pixels = np.asarray(stored.convert("RGB"))
        assert pixels.shape == layer.pixels.shape
        assert np.array_equal(pixels, layer.pixels) == layer.flat
