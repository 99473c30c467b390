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

# (split, index) -> a caption and pictures uint8 (H, W, 3), none where there is nothing to see
Draw = Callable[[str, int], tuple[str, Sequence[NDArray[np.uint8]]]]
_CASES = 3  # told of each finding in the terminal
_PICTURES = 6  # shown of each split and each finding on the page
_LINES = 5  # cases told of each finding on the page before the rest is folded
_SIDE = 240  # of a picture on the page, in pixels
_CHANNEL_COLOURS = ("#c33", "#3a3", "#33c", "#999")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
.bar { background: #69c; height: .8em; display: inline-block }
.error { color: #b00 } .warning { color: #a60 }
figure { display: inline-block; margin: .5em; vertical-align: top } figcaption { font-size: 12px }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em;
  border: 1px solid #999 }
details { margin: .5em 0 } svg { background: #f6f6f6 }
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


def page(
    audit: Audit,
    draw: Draw,
    *,
    title: str,
    when: str,
    palette: Sequence[tuple[int, int, int]],
    class_weights: Mapping[str, Sequence[float]],
) -> str:
    """One HTML file that needs no other.

    Args:
        audit: what to show.
        draw: an example's caption and pictures.
        title: where the data lies.
        when: it was read.
        palette: N colours of the overlays, for their legend.
        class_weights: by split, N weights of the classes.
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>Audit of {html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>Audit</h1><p>{html.escape(title)}<br>{html.escape(when)}"
    ]
    parts.append("".join(_findings(audit, draw)) + "<h2>Classes</h2>")
    head = "".join(f"<th>{html.escape(name)}<th><th>weight" for name in audit.splits)
    parts.append(f"<table><tr><th>share of pixels{head}")
    colours = dict(zip(audit.classes, palette, strict=True))
    for label, *shares in _shares(audit):
        parts.append(f"<tr><td>{_swatch(colours.get(label))}{html.escape(label)}")
        for name, share in zip(audit.splits, shares, strict=True):
            weights = dict(zip(audit.classes, class_weights.get(name, ()), strict=False))
            weight = f"{weights[label]:.3g}" if label in weights else ""
            bar = f"<span class=bar style=width:{share[:-1]}px></span>"
            parts.append(f"<td>{share}<td style=text-align:left>{bar}<td>{weight}")
    parts.append(
        "</table><p>Colours are those of the overlays; a weight by median frequency makes up for "
        f"the class's share. {html.escape(_nowhere(audit))}"
    )
    for name, split in audit.splits.items():
        parts.append(f"<h2>{html.escape(name)}</h2><p>{html.escape(_told(split))}")
        if split.sizes:
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
        lines = [f"<li>{html.escape(case.text)}" for case in cases]
        yield f"<p>{html.escape(kind.advice)}<ul>{''.join(lines[:_LINES])}</ul>"
        if rest := lines[_LINES:]:
            more = f"… and {len(rest)} more"
            yield f"<details><summary>{more}</summary><ul>{''.join(rest)}</ul></details>"
        yield from (_figure(draw, *at) for case in cases[:_PICTURES] for at in case.examples[:2])


def _shares(audit: Audit) -> Iterator[list[str]]:
    """A row for each class that occurs and for what is ignored: its name, its share by split."""
    pixels = np.array([[*split.pixels, split.ignored] for split in audit.splits.values()])
    shares = pixels / np.maximum(pixels.sum(1, keepdims=True), 1)
    for c, name in enumerate([*audit.classes, "ignored"]):
        if pixels[:, c].any():
            yield [name, *(f"{share:.2%}" for share in shares[:, c])]


def _nowhere(audit: Audit) -> str:
    known = len(audit.classes) < IGNORE  # else their number is not known
    if not known or not any(len(split.counts) for split in audit.splits.values()):
        return ""
    every = np.sum([split.pixels for split in audit.splits.values()], axis=0)
    absent = [name for name, n in zip(audit.classes, every, strict=True) if not n]
    return f"Classes without a pixel: {shown(absent)}." if absent else ""


def _told(split: Split) -> str:
    """How many examples, and of what sizes."""
    used = len(split.counts)
    text = "1 example" if split.examples == 1 else f"{split.examples} examples"
    if used < split.examples:
        text += f", of which {used or 'none'} can be used"
    common = sorted(split.sizes.items(), key=lambda item: -item[1])
    sizes = shown(f"{h}×{w} ({n})" for (h, w), n in common)
    text += f"; height × width: {sizes}; channels: {len(split.histogram)}" if sizes else ""
    if over := split.passed_over:
        text += f"; passed over, for they are no pictures: {len(over)} ({shown(over)})"
    return f"{text}."


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
    caption, pictures = draw(split, index)
    images = []
    for pixels in pictures:
        picture, buffer = Image.fromarray(pixels), io.BytesIO()
        picture.thumbnail((_SIDE, _SIDE))
        picture.save(buffer, "JPEG")
        data = base64.b64encode(buffer.getvalue()).decode()
        images.append(f'<img src="data:image/jpeg;base64,{data}" alt="">')
    caption = f"<figcaption>{html.escape(caption)}"
    return f"<figure>{' '.join(images)}{caption}</figure>" if images else ""


def _swatch(colour: tuple[int, int, int] | None) -> str:
    return f"<span class=swatch style='background:rgb{tuple(colour)}'></span>" if colour else ""
