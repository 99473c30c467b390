"""Small charts as SVG within a page of HTML, whose style sheet gives them their colours.

Of each series the class is `s0`, `s1`, …; texts, axes and grid are named by classes too, so that
one chart serves light, dark and paper.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_WIDTH, _HEIGHT = 440, 250  # drawn as wide as its column, about this many pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 38  # around the plot, for numbers and names
_POINTS = 300  # of a line; more are told by means
_DASHES = ("", "7 3", "2 3", "9 3 2 3")  # a second way, beside colour, to tell lines apart
COLOURS = 8  # that the style sheet has


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        name: whose it is.
        x, y: as many numbers; a NaN in y is a gap.
        index: which colour and dash.
        marked: each value has a point, whose text tells it.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    index: int = 0
    marked: bool = False


@dataclass(frozen=True)
class Bars:
    """A series of a histogram.

    Args:
        name: whose it is.
        heights: one for each bin.
        index: which colour and dash.
    """

    name: str
    heights: ArrayLike
    index: int = 0


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    y_name: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> str:
    """Lines over a common axis; a logarithmic one where positive values span more than 1 to 50.

    Args:
        lines: what to draw.
        title: what is seen, for who does not see it.
        x_name, y_name: of the axes.
        x_range, y_range: ends of the axes; by default those of the values.
        diagonal: draw where y is x.

    Returns:
        An `<svg>`; nothing where there is no value.
    """
    thin = [_thinned(line) for line in lines]
    points = np.concatenate([np.stack(xy) for xy in thin], axis=1) if thin else np.empty((2, 0))
    points = points[:, np.isfinite(points).all(0)]
    if not points.size:
        return ""
    low, high = y_range or (points[1].min(), points[1].max())
    log = y_range is None and low > 0 and high > 50 * low
    y_axis = _Axis(low, high, _HEIGHT - _BOTTOM, _TOP, log=log, exact=y_range is not None)
    x_low, x_high = x_range or (points[0].min(), points[0].max())
    x_axis = _Axis(x_low, x_high, _LEFT, _WIDTH - _RIGHT, exact=True)
    drawn = [_frame(x_axis, y_axis, x_name, y_name)]
    if diagonal:
        ends = [(x_axis(v), y_axis(v)) for v in (0, 1)]
        drawn.append(f'<path class="ideal" d="{_path(*zip(*ends, strict=True))}"/>')
    for line, (x, y) in zip(lines, thin, strict=True):
        across, up = x_axis.all(x), y_axis.all(y)
        drawn.append(f'<path {_look(line.index)} d="{_path(across, up)}"/>')
        if line.marked:
            drawn += [
                f'<circle class="s{line.index % COLOURS}" cx="{px:.1f}" cy="{py:.1f}" r="3"><title>'
                f"{html.escape(line.name)}: {vx:.4g}, {vy:.4g}</title></circle>"
                for px, py, vx, vy in zip(across, up, x, y, strict=True)
                if math.isfinite(vy)
            ]
    return _svg(drawn, title)


def histogram(
    series: Sequence[Bars],
    edges: ArrayLike,
    *,
    title: str,
    x_name: str,
    y_name: str,
) -> str:
    """How much lies in each bin: filled of one series, outlines of several.

    Args:
        series: of B heights each.
        edges: B + 1, of the bins.
        title: what is seen, for who does not see it.
        x_name, y_name: of the axes.

    Returns:
        An `<svg>`; nothing where all heights are 0.
    """
    at = np.asarray(edges, float)
    heights = [np.asarray(of.heights) for of in series]
    whole = all(np.issubdtype(values.dtype, np.integer) for values in heights)
    high = max((values.max(initial=0) for values in heights), default=0)
    if not high:
        return ""
    x_axis = _Axis(at[0], at[-1], _LEFT, _WIDTH - _RIGHT, exact=True)
    y_axis = _Axis(0, high, _HEIGHT - _BOTTOM, _TOP, least=1 if whole else 0)
    drawn = [_frame(x_axis, y_axis, x_name, y_name)]
    for of, values in zip(series, heights, strict=True):
        across = np.repeat(x_axis.all(at), 2)
        up = y_axis.all(np.concatenate([[0], np.repeat(values, 2), [0]]))
        filled = " filled" if len(series) == 1 else ""
        drawn.append(
            f'<path {_look(of.index, filled)} d="{_path(across, up)}">'
            f"<title>{html.escape(of.name)}</title></path>"
        )
    return _svg(drawn, title)


def key(index: int) -> str:
    """A short line as that of a series, for a legend."""
    return (
        '<svg class="key" viewBox="0 0 28 10" aria-hidden="true">'
        f'<path {_look(index)} d="M0,5H28"/></svg>'
    )


def _look(index: int, more: str = "") -> str:
    """The attributes of a series' line."""
    dash = _DASHES[index % len(_DASHES)]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return f'class="line s{index % COLOURS}{more}"{style}'


class _Axis:
    """Values to places along an axis, with ticks at round values."""

    def __init__(
        self,
        low: float,
        high: float,
        start: float,
        end: float,
        *,
        log: bool = False,
        exact: bool = False,
        least: float = 0,
    ) -> None:
        if low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
            log = False
        self._of: Callable[[NDArray], NDArray] = np.log10 if log else np.asarray
        self.ticks = _powers(low, high) if log else _round_values(low, high, least)
        if not exact:  # the ends are ticks, so that no value touches the frame
            if not log:
                step = self.ticks[1] - self.ticks[0]
                if self.ticks[0] > low:
                    self.ticks = [self.ticks[0] - step, *self.ticks]
                if self.ticks[-1] < high:
                    self.ticks = [*self.ticks, self.ticks[-1] + step]
            low, high = min(low, self.ticks[0]), max(high, self.ticks[-1])
        self.ticks = [tick for tick in self.ticks if low <= tick <= high]
        ends = self._of(np.array([low, high], float))
        self._scale = (end - start) / (ends[1] - ends[0])
        self._shift = start - ends[0] * self._scale

    def all(self, values: NDArray) -> NDArray:
        """The places of values."""
        return self._of(np.asarray(values, float)) * self._scale + self._shift

    def __call__(self, value: float) -> float:
        return float(self.all(np.array(value, float)))


def _round_values(low: float, high: float, least: float) -> list[float]:
    """About five values at steps of 1, 2 or 5 times a power of ten, the first two at least."""
    size = max((high - low) / 5, least)
    power = 10.0 ** math.floor(math.log10(size))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= size * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _powers(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [10.0**e for e in exponents]


def _frame(x_axis: _Axis, y_axis: _Axis, x_name: str, y_name: str) -> str:
    """Grid, numbers and names."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in y_axis.ticks:
        at = y_axis(tick)
        parts.append(f'<path class="grid" d="M{_LEFT},{at:.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" class="end">{_number(tick)}</text>')
    for tick in x_axis.ticks:
        at = x_axis(tick)
        parts.append(f'<path class="axis" d="M{at:.1f},{bottom}v4"/>')
        kind = "end" if at > right - 12 else "middle"
        parts.append(
            f'<text x="{min(at + 8, right) if kind == "end" else at:.1f}" y="{bottom + 17}" '
            f'class="{kind}">{_number(tick)}</text>'
        )
    parts.append(f'<path class="axis" d="M{_LEFT},{bottom}H{right}"/>')
    parts.append(
        f'<text x="{right}" y="{_HEIGHT - 5}" class="end name">{html.escape(x_name)}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 5}" class="name">↑ {html.escape(y_name)}</text>'
    )
    return "".join(parts)


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e4:
        for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= unit:
                return f"{value / unit:g}{name}"
    return f"{value:.0e}".replace("e-0", "e-") if abs(value) < 1e-3 else f"{value:g}"


def _path(across: Sequence[float] | NDArray, up: Sequence[float] | NDArray) -> str:
    """A path through points, which begins anew after a gap."""
    parts, pen = [], "M"
    for x, y in zip(across, up, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            parts.append(f"{pen}{x:.1f},{y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def _thinned(line: Line) -> tuple[NDArray, NDArray]:
    """The points of a line, or where they are too many the means of as many at a time."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    size = -(-len(x) // _POINTS)
    if size < 2:
        return x, y
    cuts = np.arange(0, len(x), size)
    finite = np.isfinite(y)
    total, count = (np.add.reduceat(v, cuts) for v in (np.where(finite, y, 0), finite.astype(int)))
    means = np.divide(total, count, out=np.full(len(cuts), np.nan), where=count > 0)
    return x[np.minimum(cuts + size, len(x)) - 1], means


def _svg(drawn: Sequence[str], title: str) -> str:
    """Without ids, of which two charts of one page would share some."""
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(drawn)}</svg>'
    )
