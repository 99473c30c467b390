"""A run in tables and curves, for the terminal, a Markdown file and a PNG.

Draws what it is given and reads `metrics.jsonl`; how a score is computed, or what a model is, it
does not know. Scores are fractions, told with four decimals; a class that is absent has NaN,
told as "–".
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segjax.errors import SegjaxError

if TYPE_CHECKING:
    from rich.table import Table

_NONE: Mapping[str, Mapping[str, float]] = {}


def score_table(
    classes: Sequence[str],
    per_class: Mapping[str, ArrayLike],
    overall: Mapping[str, float],
    others: Mapping[str, Mapping[str, float]] = _NONE,
) -> "Table":
    """Sets out the scores of each class for the terminal, the overall ones beneath.

    Args:
        classes: N names.
        per_class: by name of the score, floats `(N,)`, NaN where a class is absent.
        overall: by name, scores of all classes together.
        others: by name of another method, its overall scores, set beside them.

    Returns:
        A table to print with rich.

    Raises:
        SegjaxError: a score has not one value per class.
    """
    from rich.table import Table
    from rich.text import Text

    beneath = [["score", "network", *others], *_overall_rows(overall, others)]
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
    *,
    width: int,
) -> list["Table"]:
    """`score_table` in as many tables as lines of `width` need, so that no number is broken."""
    from rich.console import Console

    whole = score_table(classes, per_class, overall, others)
    if len(per_class) < 2 or Console(width=10_000).measure(whole).maximum <= width:
        return [whole]
    names = list(per_class)
    half = len(names) // 2
    parts = [{name: per_class[name] for name in part} for part in (names[:half], names[half:])]
    return [
        *score_tables(classes, parts[0], {}, width=width),
        *score_tables(classes, parts[1], overall, others, width=width),
    ]


def scores_markdown(
    classes: Sequence[str],
    per_class: Mapping[str, ArrayLike],
    overall: Mapping[str, float],
    others: Mapping[str, Mapping[str, float]] = _NONE,
) -> str:
    """Sets out the same scores as `score_table` in Markdown: overall first, then each class.

    Args:
        classes: N names.
        per_class: by name of the score, floats `(N,)`, NaN where a class is absent.
        overall: by name, scores of all classes together.
        others: by name of another method, its overall scores, set beside them.

    Returns:
        One or two tables, ending in a newline.

    Raises:
        SegjaxError: a score has not one value per class.
    """
    tables = []
    if overall:
        tables.append((["score", "network", *others], _overall_rows(overall, others)))
    tables.append((["class", *per_class], _rows(classes, per_class)))
    return "\n".join(_markdown_table(heading, rows) for heading, rows in tables)


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

    figure = Figure(figsize=(8, 1 + sum(heights.values())), dpi=120, layout="constrained")
    grid = figure.subplots(
        len(heights), sharex=True, squeeze=False, height_ratios=list(heights.values())
    )
    panels = dict(zip(heights, grid[:, 0], strict=True))
    figure.suptitle(title)
    for name, panel in panels.items():
        panel.set_ylabel(name)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.01)
    if training:
        steps, loss = _column(training, "step"), _column(training, "loss")
        panels["loss"].plot(steps, loss, color="tab:blue", alpha=0.3, linewidth=0.8)
        panels["loss"].plot(steps, _smoothed(loss), color="tab:blue", label="training")
        rate, rates = panels["learning rate"], _column(training, "learning_rate")
        rate.plot(steps, rates, color="tab:gray")
        rate.fill_between(steps, rates, color="tab:gray", alpha=0.2, linewidth=0)
        rate.ticklabel_format(axis="y", scilimits=(-2, 3))
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
    last = grid[-1, 0]
    last.set_xlabel("step")
    last.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, format="png")


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
    overall: Mapping[str, float], others: Mapping[str, Mapping[str, float]]
) -> list[list[str]]:
    """Name, score, and the same score of each other method."""
    return [
        [name, *(_told(scores.get(name, math.nan)) for scores in (overall, *others.values()))]
        for name in overall
    ]


def _told(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


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
