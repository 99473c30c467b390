"""Label maps as pictures: colours, overlays, palette PNGs and a sheet to compare them by eye.

Knows NumPy and Pillow only: no model, no data set, no score. A label map is `(H, W)` with class
indices below N and 255 for void; a palette is uint8 `(N, 3)`, one RGB colour per class.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from segjax.errors import SegjaxError

VOID = 255
VOID_COLOUR = (224, 224, 192)  # as in the masks of PASCAL VOC

Row = tuple[ArrayLike, ArrayLike | None, ArrayLike]


def colourise(label: ArrayLike, palette: ArrayLike) -> NDArray[np.uint8]:
    """Gives every class its colour, and void that of PASCAL VOC.

    Args:
        label: integer `(H, W)`, class indices below N, or 255 = void.
        palette: uint8 `(N, 3)`, RGB.

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        SegjaxError: the label map is no `(H, W)` of integers or holds a class without a colour.
    """
    colours = _colour_table(palette)
    return colours[_checked_label(label, palette)]


def overlay(
    image: ArrayLike, label: ArrayLike, palette: ArrayLike, *, opacity: float = 0.5
) -> NDArray[np.uint8]:
    """Lays the classes' colours over a picture, stronger along the borders between classes.

    Class 0 is coloured like any other: where it is a black background, the picture is darkened
    around the objects. Set it to 255 in `label` to leave the picture as it is there.

    Args:
        image: uint8 or float32 `(H, W, C)` in 0..255, C = 1 (grey), 3 (RGB) or more, of which the
            first three are shown.
        label: integer `(H, W)`; the picture is untouched where it is 255.
        palette: uint8 `(N, 3)`, RGB.
        opacity: float in [0, 1]; 0 is the picture alone, 1 the colours alone.

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        SegjaxError: image and label differ in size, or one of them is malformed.
    """
    picture, colours = _rgb(image), colourise(label, palette)
    _check_same_size(picture, colours)
    if not 0 <= opacity <= 1:
        raise SegjaxError(f"opacity: expected a number in [0, 1], got {opacity}.")
    label = np.asarray(label)
    # 1 - (1 - o)² is stronger than o, yet keeps both ends, 0 and 1, as they are.
    strength = np.where(_borders(label), 1 - (1 - opacity) ** 2, opacity)
    strength = np.where(label == VOID, 0, strength)[..., None]
    return np.rint(picture + strength * (colours.astype(float) - picture)).astype(np.uint8)


def save_mask(path: Path | str, label: ArrayLike, palette: ArrayLike) -> None:
    """Writes a label map as a palette PNG, whose stored indices are the classes (255 = void).

    Args:
        path: the PNG to write.
        label: integer `(H, W)`, class indices below N, or 255 = void.
        palette: uint8 `(N, 3)`, RGB.

    Raises:
        SegjaxError: the label map is no `(H, W)` of integers or holds a class without a colour.
    """
    mask = Image.fromarray(_checked_label(label, palette))
    mask.putpalette(_colour_table(palette).tobytes())  # turns the mode from "L" to "P"
    mask.save(path, format="PNG")


def preview_sheet(rows: Sequence[Row], classes: Sequence[str], palette: ArrayLike) -> Image.Image:
    """Sets pictures, their truth and their prediction side by side, with a legend beneath.

    Large pictures are reduced to at most 320 pixels a side, small ones enlarged by a whole
    factor without smoothing. The legend names the classes that occur. The column of the truth
    is left out where no row has one.

    Args:
        rows: at least one `(image, truth, prediction)`: uint8 `(H, W, C)`, integer `(H, W)` or
            None, integer `(H, W)`.
        classes: N names.
        palette: uint8 `(N, 3)`, RGB.

    Returns:
        An RGB picture.

    Raises:
        SegjaxError: there is no row, or a row's arrays are malformed or differ in size.
    """
    if not rows:
        raise SegjaxError("preview_sheet: expected at least one row, got none.")
    table = _colour_table(palette)
    if len(classes) != len(np.asarray(palette)):
        raise SegjaxError(
            "preview_sheet: expected a colour for each class, "
            f"got {len(classes)} names and {len(np.asarray(palette))} colours."
        )

    with_truth = any(truth is not None for _, truth, _ in rows)
    headings = ["picture", "truth", "prediction"] if with_truth else ["picture", "prediction"]
    cells: list[list[Image.Image | None]] = []
    present: set[int] = set()
    for image, truth, prediction in rows:
        picture = _rgb(image)
        cells.append([_thumbnail(picture, Image.Resampling.LANCZOS)])
        for label in [truth, prediction] if with_truth else [prediction]:
            if label is None:
                cells[-1].append(None)
                continue
            colours = colourise(label, palette)
            _check_same_size(picture, colours)
            present.update(np.unique(np.asarray(label)).tolist())
            cells[-1].append(_thumbnail(colours, Image.Resampling.NEAREST))

    gap, font, heading_font = 12, ImageFont.load_default(14), ImageFont.load_default(16)
    heading_height = 24
    widths = [cell.width for row in cells for cell in row if cell is not None]
    cell_width = max(*widths, 96)  # 96: room for the headings over narrow thumbnails
    heights = [max(cell.height for cell in row if cell is not None) for row in cells]
    names = [(classes[i] if i != VOID else "void", table[i]) for i in sorted(present)]
    legend = _legend(names, len(headings) * (cell_width + gap) - gap, font)
    legend_top = gap + heading_height + sum(heights) + gap * len(heights)
    size = (gap + legend.width + gap, legend_top + legend.height + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)

    lefts = [gap + column * (cell_width + gap) for column in range(len(headings))]
    for left, heading in zip(lefts, headings, strict=True):
        draw.text((left, gap - 2), heading, "#222", heading_font)
    top = gap + heading_height
    for row, height in zip(cells, heights, strict=True):
        for left, cell in zip(lefts, row, strict=True):
            if cell is None:
                draw.text((left, top), "no truth", "#999", font)
                continue
            sheet.paste(cell, (left, top))
            draw.rectangle((left - 1, top - 1, left + cell.width, top + cell.height), None, "#bbb")
        top += height + gap
    sheet.paste(legend, (gap, legend_top))
    return sheet


def mosaic(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> Image.Image:
    """Sets pictures of any sizes in rows and columns, on white.

    Args:
        rows: at least one, all of the same number of uint8 `(H, W, 3)`.

    Returns:
        An RGB picture.
    """
    gap = 8
    height = max(picture.shape[0] for row in rows for picture in row) + gap
    widths = [
        max(picture.shape[1] for picture in column) + gap for column in zip(*rows, strict=True)
    ]
    sheet = Image.new("RGB", (gap + sum(widths), gap + height * len(rows)), "white")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (gap + sum(widths[:j]), gap + height * i))
    return sheet


def _legend(
    entries: Sequence[tuple[str, NDArray[np.uint8]]],
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> Image.Image:
    """Names beside their colours, in as many columns as `width` holds; one may be wider than it."""
    swatch, line = 16, 24
    step = swatch + 8 + max(int(font.getlength(name)) for name, _ in entries) + 16
    columns = max(1, width // step)
    legend = Image.new("RGB", (max(width, step), -(-len(entries) // columns) * line), "white")
    draw = ImageDraw.Draw(legend)
    for place, (name, colour) in enumerate(entries):
        top, left = (place // columns) * line, (place % columns) * step
        draw.rectangle((left, top, left + swatch, top + swatch), tuple(colour.tolist()), "#bbb")
        draw.text((left + swatch + 8, top + swatch // 2), name, "#222", font, anchor="lm")
    return legend


def _colour_table(palette: ArrayLike) -> NDArray[np.uint8]:
    """The palette, filled up to 256 colours; the unused ones are void's."""
    palette = np.asarray(palette)
    if palette.ndim != 2 or palette.shape[1] != 3 or not 0 < len(palette) <= VOID:
        raise SegjaxError(f"palette: expected (N, 3) with N of 1 to 255, got {palette.shape}.")
    if not np.issubdtype(palette.dtype, np.integer):
        raise SegjaxError(f"palette: expected integers from 0 to 255, got {palette.dtype}.")
    table = np.tile(np.array(VOID_COLOUR, np.uint8), (256, 1))
    table[: len(palette)] = palette
    return table


def _checked_label(label: ArrayLike, palette: ArrayLike) -> NDArray[np.uint8]:
    label, count = np.asarray(label), len(np.asarray(palette))
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise SegjaxError(f"label: expected integers (H, W), got {label.dtype} {label.shape}.")
    wrong = label[((label < 0) | (label >= count)) & (label != VOID)]
    if wrong.size:
        raise SegjaxError(
            f"label: expected classes 0 to {count - 1}, or 255 for void, got {wrong[0]}; "
            "the palette must have a colour for every class."
        )
    return label.astype(np.uint8)


def _rgb(image: ArrayLike) -> NDArray[np.uint8]:
    """Of fewer than three channels the first, as grey; of more the first three."""
    stored = np.asarray(image)
    if stored.ndim != 3 or stored.dtype not in (np.uint8, np.float32):
        raise SegjaxError(
            f"image: expected uint8 or float32 (H, W, C), got {stored.dtype} {stored.shape}."
        )
    pixels = np.rint(stored).astype(np.uint8)
    return np.repeat(pixels[..., :1], 3, axis=2) if pixels.shape[2] < 3 else pixels[..., :3]


def _check_same_size(picture: NDArray[np.uint8], colours: NDArray[np.uint8]) -> None:
    if picture.shape != colours.shape:
        raise SegjaxError(
            "image and label: expected the same height and width, "
            f"got {picture.shape[:2]} and {colours.shape[:2]}."
        )


def _borders(label: NDArray[np.integer]) -> NDArray[np.bool_]:
    """True where the pixel to the right or below has another label."""
    borders = np.zeros(label.shape, bool)
    borders[:, :-1] |= label[:, :-1] != label[:, 1:]
    borders[:-1] |= label[:-1] != label[1:]
    return borders


def _thumbnail(picture: NDArray[np.uint8], reduce: Image.Resampling) -> Image.Image:
    image, side = Image.fromarray(picture), 320
    factor = side / max(image.size)
    if factor < 1:
        size = [max(1, round(length * factor)) for length in image.size]
        return image.resize((size[0], size[1]), reduce)
    whole = int(factor)
    return image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST)
