"""An audit of a data set for the terminal, as JSON, and as one HTML file with pictures."""

import base64
import html
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segjax.data.audit import Audit, Split, evenly
from segjax.data.pictures import IGNORE, shown

if TYPE_CHECKING:
    from rich.console import RenderableType

Draw = Callable[[str, int], NDArray[np.uint8] | None]
_CASES = 3  # told of each finding in the terminal
_PICTURES = 6  # shown of each split and each finding on the page
_LINES = 30  # cases told of each finding on the page
_SIDE = 240  # of a picture on the page, in pixels
_CHANNEL_COLOURS = ("#c33", "#3a3", "#33c", "#999")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
.bar { background: #69c; height: .8em; display: inline-block }
.error { color: #b00 } .warning { color: #a60 }
figure { display: inline-block; margin: .5em; vertical-align: top } figcaption { font-size: 12px }
svg { background: #f6f6f6 }
"""


def renderables(audit: Audit) -> "Iterator[RenderableType]":
    """What to print with rich: a table of the classes, what the splits hold, what is wrong."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("share of pixels")
    for name in audit.splits:
        table.add_column(Text(name), justify="right")
    for row in _shares(audit):
        table.add_row(*map(Text, row))
    yield table
    for name, split in audit.splits.items():
        yield Text(f"{name}: {_told(split)}")
    if nowhere := _nowhere(audit):
        yield Text(nowhere)
    for kind, cases in audit.findings.items():
        mark, style = ("error", "bold red") if kind.error else ("warning", "yellow")
        yield Text.assemble((f"\n{mark}: ", style), f"{kind.what} ({len(cases)})")
        for case in cases[:_CASES]:
            yield Text(f"  {case.text}")
        if len(cases) > _CASES:
            yield Text(f"  … and {len(cases) - _CASES} more")
        if kind.advice:
            yield Text(f"  {kind.advice}")


def as_json(audit: Audit, class_weights: Mapping[str, Sequence[float]]) -> str:
    """All of it, with weights by split: sizes as [height, width, examples], cases' examples as
    [split, index].
    """
    return json.dumps(
        {
            "classes": audit.classes,
            "splits": {
                name: {
                    "examples": split.examples,
                    "sizes": [[*size, n] for size, n in split.sizes.items()],
                    "pixels": split.pixels.tolist(),
                    "class_weights": class_weights.get(name),
                    "ignored": split.ignored,
                    "histogram": split.histogram.tolist(),
                }
                for name, split in audit.splits.items()
            },
            "findings": [
                {**kind._asdict(), "cases": [case._asdict() for case in cases]}
                for kind, cases in audit.findings.items()
            ],
        }
    )


def page(audit: Audit, draw: Draw) -> str:
    """One HTML file that needs no other.

    Args:
        audit: what to show.
        draw: (split, index) -> uint8 (H, W, 3), or None where there is nothing to see.
    """
    parts = [f"<!doctype html><meta charset=utf-8><title>Audit</title><style>{_STYLE}</style>"]
    parts.append("<h1>Audit</h1>" + "".join(_findings(audit, draw)) + "<h2>Classes</h2>")
    head = "".join(f"<th>{html.escape(name)}<th>" for name in audit.splits)
    parts.append(f"<table><tr><th>share of pixels{head}")
    for label, *shares in _shares(audit):
        bars = "".join(
            f"<td>{share}<td style=text-align:left><span class=bar style=width:{share[:-1]}px>"
            for share in shares
        )
        parts.append(f"<tr><td>{html.escape(label)}{bars}")
    parts.append(f"</table><p>{html.escape(_nowhere(audit))}")
    for name, split in audit.splits.items():
        parts.append(f"<h2>{html.escape(name)}</h2><p>{html.escape(_told(split))}")
        parts.append("<p>Values of the pictures, 0 to 255:<br>" + _histogram(split.histogram))
        some = evenly(split.examples, _PICTURES)
        parts.append("<p>" + "".join(_figure(draw, name, i) for i in some))
    return "\n".join(parts) + "\n"


def _findings(audit: Audit, draw: Draw) -> Iterator[str]:
    if not audit.findings:
        yield "<p>Nothing was found to be wrong."
    for kind, cases in audit.findings.items():
        mark = "error" if kind.error else "warning"
        yield f"<h2><span class={mark}>{mark}:</span> {html.escape(kind.what)} ({len(cases)})</h2>"
        yield f"<p>{html.escape(kind.advice)}<ul>"
        yield "".join(f"<li>{html.escape(case.text)}" for case in cases[:_LINES])
        more = f"<li>… and {len(cases) - _LINES} more, all in the JSON file"
        yield (more if len(cases) > _LINES else "") + "</ul>"
        yield from (_figure(draw, *at) for case in cases[:_PICTURES] for at in case.examples[:2])


def _shares(audit: Audit) -> Iterator[list[str]]:
    """A row for each class that occurs and for what is ignored: its name, its share by split."""
    pixels = np.array([[*split.pixels, split.ignored] for split in audit.splits.values()])
    shares = pixels / np.maximum(pixels.sum(1, keepdims=True), 1)
    for c, name in enumerate([*audit.classes, "ignored"]):
        if pixels[:, c].any():
            yield [name, *(f"{share:.2%}" for share in shares[:, c])]


def _nowhere(audit: Audit) -> str:
    if len(audit.classes) == IGNORE:
        return ""  # their number is not known
    every = np.sum([split.pixels for split in audit.splits.values()], axis=0)
    absent = [name for name, n in zip(audit.classes, every, strict=True) if not n]
    return f"Classes without a pixel: {shown(absent)}." if absent else ""


def _told(split: Split) -> str:
    """How many examples, and of what sizes."""
    read = sum(split.sizes.values())
    text = f"{split.examples} examples"
    if read < split.examples:
        text += f", of which {read} can be read"
    common = sorted(split.sizes.items(), key=lambda item: -item[1])
    sizes = shown(f"{h}×{w} ({n})" for (h, w), n in common)
    return f"{text}; height × width: {sizes or 'none'}; channels: {len(split.histogram)}."


def _histogram(histogram: NDArray[np.int64]) -> str:
    """A line for each channel; the height is the square root, for rare values to be seen."""
    height = 80
    scaled = height - height * np.sqrt(histogram / max(histogram.max(), 1))
    lines = [
        f'<polyline fill=none stroke="{colour}" points="'
        + " ".join(f"{2 * x},{y:.0f}" for x, y in enumerate(line))
        + '"/>'
        for line, colour in zip(scaled, _CHANNEL_COLOURS, strict=False)
    ]
    return f"<svg width=512 height={height}>{''.join(lines)}</svg>"


def _figure(draw: Draw, split: str, index: int) -> str:
    pixels = draw(split, index)
    if pixels is None:
        return ""
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((_SIDE, _SIDE))
    picture.save(buffer, "JPEG")
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(f"{split} {index}")
    return f'<figure><img src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figure>'
