"""Confusion matrices on a page: a table of few classes, of many a picture, and what is most often
taken for what.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from segjax.evaluation import results
from segjax.evaluation.comparison import encoded
from segjax.evaluation.markup import Cell, percent, row, table, text
from segjax.evaluation.results import Result

_FULL_MATRIX = 32  # classes up to which a confusion matrix is told in numbers
_CONFUSIONS = 20  # told of what is taken for what


def confusion(runs: Sequence[Result]) -> Iterator[str]:
    """Each run's matrix, and what it takes for what most."""
    for i, run in enumerate(runs):
        matrix = run.scores.get("confusion")
        if not matrix or not sum(map(sum, matrix)):
            continue
        body = _matrix(run) if len(run.classes) <= _FULL_MATRIX else _heat(run)
        if len(run.classes) > 2:
            body += _top_confusions(run)
        if len(runs) > 1:
            state = " open" if i == 0 else ""
            body = f"<details{state}><summary>{text(run.name)}</summary>{body}</details>"
        yield body


def _matrix(run: Result) -> str:
    few = " few" if len(run.classes) <= 4 else ""
    rows = []
    for c, counts in enumerate(run.scores["confusion"]):
        total = sum(counts)
        cells = [Cell(text(run.classes[c]))]
        for p, count in enumerate(counts):
            share = count / total if total else 0.0
            number = percent(share) if few else f"{100 * share:.0f}"
            content = "" if not count else "&lt;1" if not few and share < 0.005 else number
            kind = "right" if c == p else ""
            ink = share if c == p else math.sqrt(share)  # for the errors are small
            cells.append(Cell(content if total else "–", None, kind, f"--v:{ink:.3f}"))
        rows.append(cells)
    caption = (
        "Rows: the truth; columns: what was predicted; per cent of the row's pixels. An empty "
        "field: none at all. “–”: a class that is not in the truth."
    )
    kind = "" if few else ' class="of"'
    heads = "".join(f"<th scope=col{kind}>{text(name)}</th>" for name in run.classes)
    body = "".join(row(cells) for cells in rows)
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="Confusion matrix">'
        f'<table class="matrix{few}"><caption><span>{caption}</span></caption><thead><tr>'
        f"<th scope=col>truth</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _heat(run: Result) -> str:
    """The matrix of many classes as a picture, a pixel a field."""
    counts = np.array(run.scores["confusion"], float)
    shares = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))[..., None]
    paper, wrong, right = ([255, 255, 255], [178, 24, 43], [0, 105, 92])
    ink = np.where(np.eye(len(counts), dtype=bool)[..., None], right, wrong)
    pixels = np.rint(paper + shares * (np.array(ink) - paper)).astype(np.uint8)
    data = encoded(pixels, flat=True)
    name = f"Confusion matrix of {len(counts)} classes"
    return (
        f'<figure class=matrix><img class=heat src="{data}" alt="{name}; its largest fields are '
        f'in the table below" width={len(counts)} height={len(counts)}>'
        f"<figcaption>{name} as a picture: rows are the truth, from the top; columns what was "
        "predicted. Green on the diagonal: right; red beside it: taken for another class; the "
        "stronger, the greater the (square root of the) share of the row.</figcaption></figure>"
    )


def _top_confusions(run: Result) -> str:
    found = results.confusions(run.scores["confusion"])
    rows = [
        [
            Cell(text(run.classes[true])),
            Cell(text(run.classes[predicted]), kind="text"),
            Cell(percent(share), share, "bar", f"--v:{share:.4f}"),
            Cell(f"{count:,}", count),
        ]
        for true, predicted, count, share in found[:_CONFUSIONS]
    ]
    if not rows:
        return ""
    heading = ["truth", "taken for", "share of the truth", "pixels"]
    caption = "Most frequent confusions, by pixels."
    return table(caption, heading, rows, sortable=True)
