"""A run in tables and curves, for the terminal, a Markdown file and a PNG.

Draws what it is given and reads `metrics.jsonl`; how a score is computed, or what a model is, it
does not know. Scores are fractions, told with four decimals; a class that is absent has NaN,
told as "–".
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segjax.errors import SegjaxError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_NONE: Mapping[str, Mapping[str, float]] = {}
_UNSURE: Mapping[str, tuple[float, float]] = {}
_NOTHING = (math.nan, math.nan)


def score_table(
    classes: Sequence[str],
    per_class: Mapping[str, ArrayLike],
    overall: Mapping[str, float],
    others: Mapping[str, Mapping[str, float]] = _NONE,
    intervals: Mapping[str, tuple[float, float]] = _UNSURE,
) -> "Table":
    """Sets out the scores of each class for the terminal, the overall ones beneath.

    Args:
        classes: N names.
        per_class: by name of the score, floats `(N,)`, NaN where a class is absent.
        overall: by name, scores of all classes together.
        others: by name of another method, its overall scores, set beside them.
        intervals: by name of an overall score, low and high of its 95 % interval.

    Returns:
        A table to print with rich.

    Raises:
        SegjaxError: a score has not one value per class.
    """
    from rich.table import Table
    from rich.text import Text

    beneath = _overall_rows(overall, others, intervals)
    widths = [max(map(len, column)) for column in zip(*beneath, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)) for row in beneath]
    caption = Text("\n".join(lines)) if overall else None
    # A caption is broken at the table's width, within a score if need be.
    table = Table(caption=caption, caption_justify="left", min_width=max(map(len, lines)))
    table.add_column("class")
    for name in per_class:
        table.add_column(Text(name), justify="right")
    for row in _rows(classes, per_class):
        table.add_row(*map(Text, row))  # Text: a name like "[sky]" is no markup
    return table


def score_tables(
    classes: Sequence[str],
    per_class: Mapping[str, ArrayLike],
    overall: Mapping[str, float],
    others: Mapping[str, Mapping[str, float]] = _NONE,
    intervals: Mapping[str, tuple[float, float]] = _UNSURE,
    *,
    width: int,
) -> list["Table"]:
    """`score_table` in as many tables as lines of `width` need, so that no number is broken."""
    from rich.console import Console

    whole = score_table(classes, per_class, overall, others, intervals)
    if len(per_class) < 2 or Console(width=10_000).measure(whole).maximum <= width:
        return [whole]
    names = list(per_class)
    half = len(names) // 2
    parts = [{name: per_class[name] for name in part} for part in (names[:half], names[half:])]
    return [
        *score_tables(classes, parts[0], {}, width=width),
        *score_tables(classes, parts[1], overall, others, intervals, width=width),
    ]


def scores_markdown(
    classes: Sequence[str],
    per_class: Mapping[str, ArrayLike],
    overall: Mapping[str, float],
    others: Mapping[str, Mapping[str, float]] = _NONE,
    intervals: Mapping[str, tuple[float, float]] = _UNSURE,
) -> str:
    """Sets out the same scores as `score_table` in Markdown: overall first, then each class.

    Args:
        classes: N names.
        per_class: by name of the score, floats `(N,)`, NaN where a class is absent.
        overall: by name, scores of all classes together.
        others: by name of another method, its overall scores, set beside them.
        intervals: by name of an overall score, low and high of its 95 % interval.

    Returns:
        One or two tables, ending in a newline.

    Raises:
        SegjaxError: a score has not one value per class.
    """
    tables = []
    if overall:
        heading, *rows = _overall_rows(overall, others, intervals)
        tables.append((heading, rows))
    tables.append((["class", *per_class], _rows(classes, per_class)))
    return "\n".join(_markdown_table(heading, rows) for heading, rows in tables)


def worst_first(pictures: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Orders pictures by "mean_iou", the lowest first; those that have none, all ignored, last."""

    def key(picture: Mapping[str, Any]) -> tuple[bool, float]:
        missing = math.isnan(picture["mean_iou"])
        return missing, 0 if missing else picture["mean_iou"]

    return sorted(pictures, key=key)


def pictures_markdown(pictures: Sequence[Mapping[str, Any]]) -> str:
    """Sets out the scores of pictures, in the order given, as a Markdown table.

    Args:
        pictures: "id", and the same scores by name of each.
    """
    names = [name for name in pictures[0] if name != "id"] if pictures else []
    rows = [[one["id"], *(_told(one[name]) for name in names)] for one in pictures]
    return _markdown_table(["worst pictures", *names], rows)


def pictures_csv(pictures: Sequence[Mapping[str, Any]]) -> str:
    """Sets out the scores of pictures, in the order given, as CSV; a NaN is left empty.

    Args:
        pictures: "id", and the same scores by name of each.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, pictures[0].keys() if pictures else ["id"], lineterminator="\n")
    writer.writeheader()
    for one in pictures:
        missing = {
            name for name, value in one.items() if isinstance(value, float) and value != value
        }
        writer.writerow({name: "" if name in missing else value for name, value in one.items()})
    return file.getvalue()


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Reads the lines of a `metrics.jsonl`, less a last one torn by the end of its process.

    Args:
        path: the file.

    Returns:
        One dict per line, in the order of the file.

    Raises:
        SegjaxError: there is no such file, or a line other than the last is broken.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise SegjaxError(f"{path}: expected a run's metrics, got: {error.strerror}.") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and all(map(_is_number, record.values())):
            records.append(record)
        elif number < len(lines):
            start = line[:40].decode(errors="replace")
            raise SegjaxError(
                f"{path}, line {number}: expected a JSON object of numbers, got {start!r}; "
                "mend or delete the line."
            )
    return records


def plot_curves(records: Sequence[Mapping[str, Any]], path: Path | str, *, title: str = "") -> None:
    """Draws losses, held-out mean IoU and learning rate against the step, as a PNG.

    Args:
        records: the lines of a `metrics.jsonl`: those with "learning_rate" are of training and hold
            "step" and "loss", those with "mean_iou" are of the held-out data and may hold a "loss",
            the cross-entropy. A value may be None.
        path: the PNG to write.
        title: what is drawn above: whose curves these are.

    Raises:
        SegjaxError: no record is of training or validation.
    """
    from matplotlib.figure import Figure  # without pyplot: no state beyond this function
    from matplotlib.ticker import MaxNLocator

    training = [record for record in records if "learning_rate" in record]
    validation = [record for record in records if "mean_iou" in record]
    if not training and not validation:
        raise SegjaxError(
            f"{path}: nothing to draw; expected records with learning_rate or mean_iou, "
            f"got {len(records)} without."
        )
    held_out = [record for record in validation if "loss" in record]
    heights = {"loss": 3.0} if training or held_out else {}
    heights |= {"mean IoU": 2.0} if validation else {}
    heights |= {"learning rate": 1.0} if training else {}

    figure = Figure(figsize=(8, 1 + sum(heights.values())), dpi=120)
    grid = _panels(figure, list(heights.values()))
    panels = dict(zip(heights, grid, strict=True))
    figure.suptitle(title)
    for name, panel in panels.items():
        panel.set_ylabel(name)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.01)
        panel.ticklabel_format(axis="y", scilimits=(-2, 4))  # no number wider than its room
    if training:
        steps, loss = _column(training, "step"), _column(training, "loss")
        panels["loss"].plot(steps, loss, color="tab:blue", alpha=0.3, linewidth=0.8)
        panels["loss"].plot(steps, _smoothed(loss), color="tab:blue", label="training")
        rate, rates = panels["learning rate"], _column(training, "learning_rate")
        rate.plot(steps, rates, color="tab:gray")
        rate.fill_between(steps, rates, color="tab:gray", alpha=0.2, linewidth=0)
    if held_out:
        steps, loss = _column(held_out, "step"), _column(held_out, "loss")
        label = "held out: cross-entropy, without weights"
        panels["loss"].plot(steps, loss, color="tab:orange", marker="o", markersize=4, label=label)
    if "loss" in panels:
        panels["loss"].legend(frameon=False)
    if validation:
        steps, scores = _column(validation, "step"), _column(validation, "mean_iou")
        panel = panels["mean IoU"]
        panel.plot(steps, scores, color="tab:orange", marker="o", markersize=4, linewidth=1)
        if np.isfinite(scores).any():
            best = int(np.nanargmax(scores))
            panel.set_title(
                f"best {scores[best]:.4f} at step {steps[best]:.0f}", loc="right", fontsize=9
            )
    last = grid[-1]
    last.set_xlabel("step")
    last.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, format="png")


def plot_reliability(reliability: Mapping[str, Any], path: Path | str, *, title: str = "") -> None:
    """Draws how often pixels are right against how sure the network is of them, as a PNG.

    Args:
        reliability: "edges" (K + 1), "count", "confidence", "accuracy" (K) of K bins of confidence,
            NaN in empty ones, and "ece" and "mce".
        path: the PNG to write.
        title: what is drawn above: whose calibration this is.
    """
    from matplotlib.figure import Figure

    edges, count = np.asarray(reliability["edges"]), np.asarray(reliability["count"], float)
    confidence, accuracy = (np.asarray(reliability[n], float) for n in ("confidence", "accuracy"))
    middle, width = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    figure = Figure(figsize=(5, 6.2), dpi=120)
    above, below = _panels(figure, [4, 1])
    figure.suptitle(title)
    for panel in (above, below):
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    above.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label="calibrated")
    above.bar(middle, np.nan_to_num(accuracy), width, color="tab:blue", edgecolor="white")
    held = count > 0
    above.plot(
        confidence[held], accuracy[held], color="tab:orange", marker="o", label="mean of each bin"
    )
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
    above.set_title(
        f"ECE {_told(reliability['ece'])}, MCE {_told(reliability['mce'])}", fontsize=10
    )
    above.legend(frameon=False, loc="upper left")
    share = count / max(count.sum(), 1)
    below.bar(middle, share, width, color="tab:gray", edgecolor="white")
    below.set(xlabel="confidence", ylabel="pixels", ylim=(0, 1))
    figure.savefig(path, format="png")


def _panels(figure: "Figure", heights: Sequence[float]) -> NDArray[np.object_]:
    """Axes one above the other, with room for a title, numbers and names.

    Room in inches: Matplotlib's constrained layout finds it by drawing everything once more.
    """
    (width, height), panels = figure.get_size_inches(), len(heights)
    between = 0.3 * panels / (height - 1)  # as a share of the mean height
    return figure.subplots(
        panels,
        sharex=True,
        squeeze=False,
        height_ratios=heights,
        gridspec_kw={
            "left": 0.75 / width,
            "right": 1 - 0.15 / width,
            "bottom": 0.5 / height,
            "top": 1 - 0.55 / height,
            "hspace": between,
        },
    )[:, 0]


def _rows(classes: Sequence[str], per_class: Mapping[str, ArrayLike]) -> list[list[str]]:
    columns = {name: np.asarray(values, float) for name, values in per_class.items()}
    for name, values in columns.items():
        if values.shape != (len(classes),):
            raise SegjaxError(
                f"{name}: expected a value for each of the {len(classes)} classes, "
                f"got shape {values.shape}."
            )
    return [
        [label, *(_told(values[i]) for values in columns.values())]
        for i, label in enumerate(classes)
    ]


def _overall_rows(
    overall: Mapping[str, float],
    others: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, tuple[float, float]],
) -> list[list[str]]:
    """A heading, then name, score, its interval, and the same score of each other method."""
    sure = {
        name: [_between(*intervals.get(name, _NOTHING))] if intervals else [] for name in overall
    }
    return [
        ["score", "network", *(["95 % interval"] if intervals else []), *others],
        *(
            [name, _told(value), *sure[name]]
            + [_told(scores.get(name, math.nan)) for scores in others.values()]
            for name, value in overall.items()
        ),
    ]


def _between(low: float, high: float) -> str:
    return "–" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def _told(value: float) -> str:
    """As of `results.told`."""
    if math.isnan(value):
        return "–"
    return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heading) - 1)]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in [heading, rule, *rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _column(records: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """One value per record; what is missing or None is NaN, a gap in the curve."""
    return np.array([record.get(name) for record in records], np.float64)


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over a centred window of a twentieth of the curve, of the finite values in it."""
    window = np.ones(len(values) // 40 * 2 + 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0), window, "same")
    count = np.convolve(finite, window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
