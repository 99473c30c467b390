"""Pictures of a page that are compared: layers over each other, of which two are seen, one left and
one right of a split. Without scripts, and on paper, they stand side by side.
"""

import base64
import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segjax.evaluation.markup import swatch, text
from segjax.evaluation.results import told

_RADIOS = 4  # layers up to which all are shown at once to choose from
_SIDE = 800  # of a picture on the page, at most
_PIXELS = 12_000_000  # of all pictures together: with them a page has a few megabytes
_SMALL = 200  # pixels a side below which they are shown as squares


class Layer(NamedTuple):
    """One of the pictures that lie over each other: uint8 (H, W, 3).

    What is `flat`, of the classes' colours, is kept exactly.
    """

    name: str
    pixels: NDArray[np.uint8]
    flat: bool


class Picture(NamedTuple):
    """A held-out picture: why it is shown, and its scores by run.

    Layers have the same names in all pictures: picture, truth, and of each run what it predicts and
    where it errs.
    """

    id: str
    rank: str
    scores: Mapping[str, float | None]
    layers: Sequence[Layer]


def comparison(
    pictures: Sequence[Picture], legend: Sequence[tuple[str, tuple[int, ...]]]
) -> Iterator[str]:
    """The section of the page: what to choose from, the legend, the pictures.

    Args:
        pictures: in the order in which they are shown.
        legend: names and colours of what they show.
    """
    if not pictures:
        return
    names = [layer.name for layer in pictures[0].layers]
    sides = zip(("left", "right"), (names.index("truth"), names.index("truth") + 1), strict=True)
    choice = _radios if len(names) <= _RADIOS else _select
    choices = "".join(choice(side, names, at) for side, at in sides)
    yield f"<form class=layers autocomplete=off hidden>{choices}</form>"
    swatches = "".join(f"<li>{swatch(colour)}{text(name)}</li>" for name, colour in legend)
    yield f'<ul class=keys aria-label="Colours">{swatches}</ul>'
    total = sum(len(picture.layers) for picture in pictures)
    side = min(_SIDE, int(math.sqrt(_PIXELS / max(total, 1))))
    yield "<div class=pictures>"
    for picture in pictures:
        yield _picture(picture, side)
    yield "</div>"


def _radios(side: str, names: Sequence[str], chosen: int) -> str:
    options = "".join(
        f"<label><input type=radio name={side} value={i}{' checked' * (i == chosen)}>"
        f"<span>{text(name)}</span></label>"
        for i, name in enumerate(names)
    )
    legend = f"<legend>{side.title()}</legend>"
    return f"<fieldset>{legend}<div class=options>{options}</div></fieldset>"


def _select(side: str, names: Sequence[str], chosen: int) -> str:
    options = "".join(
        f"<option value={i}{' selected' * (i == chosen)}>{html.escape(name)}</option>"
        for i, name in enumerate(names)
    )
    return f"<label>{side.title()} <select name={side}>{options}</select></label>"


def _picture(picture: Picture, side: int) -> str:
    height, width = picture.layers[0].pixels.shape[:2]
    factor = min(1, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    scores = [
        f"{'' if len(picture.scores) == 1 else text(name) + ' '}{told(value)}"
        for name, value in picture.scores.items()
    ]
    reduced = f"; shown at {size[0]}×{size[1]} of {width}×{height} pixels" if factor < 1 else ""
    caption = f"<b>{html.escape(picture.rank)}</b> {text(picture.id)}"
    if scores:
        caption += f"{'; ' if len(scores) == 1 else '<br>'}mean IoU {', '.join(scores)}"
    layers = "".join(_layer(layer, picture.id, size) for layer in picture.layers)
    scaling = "pixelated" if max(height, width) <= _SMALL else "auto"
    return (
        f"<figure class=picture><figcaption>{caption}{reduced}</figcaption><div class=stage "
        f'style="--ratio:{size[0]}/{size[1]};--scaling:{scaling};--split:50%">{layers}</div>'
        f"<input type=range min=0 max=100 value=50 autocomplete=off "
        f'aria-label="Split of {html.escape(picture.id)}"></figure>'
    )


def _layer(layer: Layer, of: str, size: tuple[int, int]) -> str:
    source = encoded(layer.pixels, flat=layer.flat, size=size)
    name = f"{html.escape(layer.name)} of {html.escape(of)}"
    image = f'<img src="{source}" width={size[0]} height={size[1]} alt="{name}">'
    return f"<div class=layer>{image}<span>{text(layer.name)}</span></div>"


def encoded(pixels: NDArray[np.uint8], *, flat: bool, size: tuple[int, int] | None = None) -> str:
    """A picture (H, W, 3) as a data URL, reduced to a size (width, height); exact if it is flat."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if size and image.size != size:
        method = Image.Resampling.NEAREST if flat else Image.Resampling.LANCZOS
        image = image.resize(size, method)
    image.save(buffer, "WebP", **({"lossless": True} if flat else {"quality": 85}))
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
