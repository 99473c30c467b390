import re
from xml.etree import ElementTree

import numpy as np
import pytest

from segjax.evaluation import charts
from segjax.evaluation.charts import Bars, Line

NAN = float("nan")


def chart(*lines, **options):
    told = {"title": "t", "x_name": "step", "y_name": "loss"} | options
    return charts.line_chart(lines, **told)


def parsed(svg):
    root = ElementTree.fromstring(svg)  # raises where it is no XML
    return root


def numbers(svg):
    """What stands at the ticks of the axes."""
    return [t.text for t in parsed(svg).iter("text") if "name" not in t.get("class")]


def points(svg, index=0):
    """The corners of a line."""
    (path,) = [p for p in parsed(svg).iter("path") if p.get("class") == f"line s{index}"]
    return [tuple(map(float, p.split(","))) for p in re.findall(r"[\d.]+,[\d.]+", path.get("d"))]


def test_a_line_runs_from_corner_to_corner():
    svg = chart(Line("a", [0, 5, 10], [0, 1, 2]))
    (left, bottom), (middle, half), (right, top) = points(svg)
    assert left < right and top < bottom
    assert (middle, half) == ((left + right) / 2, (top + bottom) / 2)
    assert numbers(svg) == ["0", "0.5", "1", "1.5", "2", "0", "2", "4", "6", "8", "10"]


def test_a_gap_breaks_a_line():
    svg = chart(Line("a", [0, 1, 2, 3, 4], [1, 2, NAN, 3, 4], marked=True))
    (path,) = [p for p in parsed(svg).iter("path") if p.get("class") == "line s0"]
    assert path.get("d").count("M") == 2
    assert len(list(parsed(svg).iter("circle"))) == 4


@pytest.mark.parametrize("lines", [(), (Line("a", [], []),), (Line("a", [1, 2], [NAN, NAN]),)])
def test_nothing_to_draw_is_no_chart(lines):
    assert chart(*lines) == ""


@pytest.mark.parametrize("y", [[5], [0, 0, 0], [-3, -3], [1e-9, 1e-9], [1e9, 1e9 + 1], [-1, 1e6]])
def test_any_values_are_drawn_within_the_frame(y):
    svg = chart(Line("a", range(len(y)), y))
    for across, up in points(svg):
        assert 0 <= across <= 440 and 0 <= up <= 250
    assert len(set(numbers(svg))) >= 2


def test_values_of_many_sizes_have_a_logarithmic_axis():
    svg = chart(Line("a", [0, 1, 2], [1e-4, 1e-2, 1]))
    _, middle, _ = [y for _, y in points(svg)]
    assert {"1e-4", "0.001", "0.01", "0.1", "1"} <= set(numbers(svg))
    assert middle == pytest.approx(np.mean([y for _, y in points(svg)]), abs=0.1)
    assert "1e-4" not in numbers(chart(Line("a", [0, 1], [0, 1])))


def test_long_lines_are_told_by_means():
    n = 100_000
    y = np.where(np.arange(n) % 2, 1.0, 3.0)
    y[:1000] = NAN
    svg = chart(Line("a", range(n), y), y_range=(0, 4))
    drawn = points(svg)
    assert 200 < len(drawn) <= 300
    assert np.ptp([up for _, up in drawn]) < 1  # the mean of 1 and 3 everywhere


def test_names_are_escaped_and_lines_differ_by_dash_and_colour():
    svg = chart(*(Line(f"<b>{i}&", [0, 1], [0, i], i, True) for i in range(10)))
    titles = [t.text for t in parsed(svg).iter("title")]
    assert titles[0] == "<b>0&: 0, 0" and "<b>" not in svg
    lines = [p for p in parsed(svg).iter("path") if p.get("class").startswith("line")]
    looks = [(p.get("class"), p.get("stroke-dasharray")) for p in lines]
    assert len(set(looks[: charts.COLOURS])) == charts.COLOURS
    assert looks[0][1] is None and looks[1][1]


def test_a_histogram_is_as_high_as_its_counts():
    options = {"title": "t", "x_name": "IoU", "y_name": "pictures"}
    svg = charts.histogram([Bars("a", np.array([1, 0, 2]), 3)], [0, 0.5, 0.75, 1], **options)
    (path,) = [p for p in parsed(svg).iter("path") if p.get("class") == "line s3 filled"]
    heights = [float(p.split(",")[1]) for p in re.findall(r"[\d.]+,[\d.]+", path.get("d"))]
    zero, one, one_, none, none_, two, two_, end = heights
    assert zero == none == none_ == end and one == one_ and two == two_
    assert zero - two == pytest.approx(2 * (zero - one))
    assert numbers(svg)[:3] == ["0", "1", "2"]  # of pictures there are no halves
    assert charts.histogram([Bars("a", [0, 0])], [0, 1, 2], **options) == ""
