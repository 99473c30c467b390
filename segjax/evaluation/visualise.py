"""Label maps as pictures: colours, overlays, palette PNGs and a sheet to compare them by eye.

Knows NumPy and Pillow, and a font of Matplotlib: no model, no data set, no score. A label map is
`(H, W)` with class indices below N and 255 for void; a palette is uint8 `(N, 3)`, one RGB colour
per class.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from segjax.errors import SegjaxError

VOID = 255
VOID_COLOUR = (224, 224, 192)  # as in the masks of PASCAL VOC

BACKGROUND_COLOUR = (0, 0, 0)  # a class of this colour is not laid over pictures
WRONG_COLOUR = (255, 40, 40)
_BAND = 256  # rows of a picture that are laid over at a time


class Row(NamedTuple):
    """A row of a preview sheet: uint8 `(H, W, C)`, integer `(H, W)` twice, and a line above it."""

    image: ArrayLike
    truth: ArrayLike | None
    prediction: ArrayLike
    caption: str = ""


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
    """Lays the classes' colours over a picture, and stronger ones along their outlines.

    A class that is black in the palette is the background: there the picture stays as it is. So is
    VOC's background, class 0; CamVid's class 0, the sky, is grey and is laid like any other.

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
    label = np.asarray(label)
    _check_same_size(picture, label)
    if not 0 <= opacity <= 1:
        raise SegjaxError(f"opacity: expected a number in [0, 1], got {opacity}.")
    outlines = _outlines(label)
    for top in range(0, len(label), _BAND):  # in place: whole, the floats would take gigabytes
        rows = slice(top, top + _BAND)
        under, over = picture[rows], colours[rows]
        # 1 - (1 - o)³ is stronger than o, yet keeps both ends, 0 and 1, as they are.
        strength = np.where(outlines[rows], 1 - (1 - opacity) ** 3, opacity)
        unlaid = (label[rows] == VOID) | (over == BACKGROUND_COLOUR).all(-1)
        strength = np.where(unlaid, 0, strength)[..., None]
        over[:] = np.rint(under + strength * (over.astype(float) - under))
    return colours


def save_mask(path: Path | str | IO[bytes], label: ArrayLike, palette: ArrayLike) -> None:
    """Writes a label map as a palette PNG, whose stored indices are the classes (255 = void).

    Args:
        path: the PNG to write, or an open file.
        label: integer `(H, W)`, class indices below N, or 255 = void.
        palette: uint8 `(N, 3)`, RGB.

    Raises:
        SegjaxError: the label map is no `(H, W)` of integers or holds a class without a colour.
    """
    mask(label, palette).save(path, format="PNG")


def mask(label: ArrayLike, palette: ArrayLike) -> Image.Image:
    """A label map as a palette picture, as `save_mask` writes it."""
    picture = Image.fromarray(_checked_label(label, palette))
    picture.putpalette(_colour_table(palette).tobytes())  # turns the mode from "L" to "P"
    return picture


def with_legend(
    picture: NDArray[np.uint8], label: ArrayLike, classes: Sequence[str], palette: ArrayLike
) -> Image.Image:
    """Sets the names of the classes that are laid over a picture beneath it, with their colours.

    Args:
        picture: uint8 `(H, W, 3)`, of `overlay`; it stays at the top left, pixel by pixel.
        label: integer `(H, W)`, as given to `overlay`.
        classes: N names.
        palette: uint8 `(N, 3)`, RGB.

    Returns:
        An RGB picture, higher by the legend, and wider where a name needs it; where nothing is
        laid, the picture alone.

    Raises:
        SegjaxError: not as many names as colours.
    """
    entries = _laid_entries([label], classes, palette)
    image, gap = Image.fromarray(picture), 8
    if not entries:
        return image
    legend = _legend(entries, image.width, _font(14))
    sheet = Image.new("RGB", (legend.width, image.height + gap + legend.height), "white")
    sheet.paste(image, (0, 0))
    sheet.paste(legend, (0, image.height + gap))
    return sheet


def errors(image: ArrayLike, truth: ArrayLike, prediction: ArrayLike) -> NDArray[np.uint8]:
    """Marks the wrong pixels on the picture in pale grey; void, where nothing is wrong, is plain.

    Args:
        image: uint8 or float32 `(H, W, C)` in 0..255.
        truth: integer `(H, W)`, 255 = void.
        prediction: integer `(H, W)`.

    Returns:
        uint8 `(H, W, 3)`.
    """
    truth = np.asarray(truth)
    grey = _rgb(image).mean(-1, keepdims=True)
    marked = np.repeat(64 + grey / 2, 3, axis=2).astype(np.uint8)  # beside white and black
    marked[truth != np.asarray(prediction)] = WRONG_COLOUR
    marked[truth == VOID] = VOID_COLOUR
    return marked


def as_shown(image: ArrayLike) -> NDArray[np.uint8]:
    """A picture as people look at it: of three channels, and a dark one brightened until its
    greatest value is white, as by a longer exposure: microscopes use a fraction of the 256 values.

    Args:
        image: uint8 or float32 `(H, W, C)` in 0..255.

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        SegjaxError: the picture is malformed.
    """
    picture = _rgb(image)
    return np.rint(picture * (255 / max(picture.max(), 1))).astype(np.uint8)


def legend_entries(
    labels: Sequence[ArrayLike], classes: Sequence[str], palette: ArrayLike
) -> list["Entry"]:
    """Names and colours of the classes that occur in label maps, and of void if it does.

    Args:
        labels: integer `(H, W)` each.
        classes: N names.
        palette: uint8 `(N, 3)`, RGB.

    Raises:
        SegjaxError: not as many names as colours.
    """
    if len(classes) != len(np.asarray(palette)):
        raise SegjaxError(
            f"expected a colour for each class, got {len(classes)} names and "
            f"{len(np.asarray(palette))} colours."
        )
    names, table = [*classes, *["void"] * (VOID + 1 - len(classes))], _colour_table(palette)
    present = sorted({int(i) for label in labels for i in np.unique(np.asarray(label))})
    return [(names[i], tuple(table[i].tolist())) for i in present]


def preview_sheet(rows: Sequence[Row], classes: Sequence[str], palette: ArrayLike) -> Image.Image:
    """Sets pictures, their truth, their prediction and its errors side by side, over a legend.

    Dark pictures are brightened until their greatest value is white. Large ones are reduced to at
    most 320 pixels a side, small ones enlarged by a whole factor without smoothing. The legend
    names the classes that occur. Where the truth is void, so is the prediction drawn, for it does
    not count there. The columns of truth and errors are left out where no row has a truth.

    Args:
        rows: at least one.
        classes: N names.
        palette: uint8 `(N, 3)`, RGB.

    Returns:
        An RGB picture.

    Raises:
        SegjaxError: there is no row, or a row's arrays are malformed or differ in size.
    """
    if not rows:
        raise SegjaxError("preview_sheet: expected at least one row, got none.")
    with_truth = any(row.truth is not None for row in rows)
    cells: list[list[Image.Image | None]] = []
    labels = []
    for image, truth, prediction, _ in rows:
        picture = as_shown(image)
        shown = np.asarray(prediction)
        _check_same_size(picture, shown)
        if truth is not None:
            _check_same_size(picture, np.asarray(truth))
            shown = np.where(np.asarray(truth) == VOID, VOID, shown)
        drawn = {"prediction": _thumbnail(colourise(shown, palette), Image.Resampling.NEAREST)}
        labels.append(shown)
        if truth is not None:
            labels.append(np.asarray(truth))
            drawn["truth"] = _thumbnail(colourise(truth, palette), Image.Resampling.NEAREST)
            marked = errors(picture, truth, prediction)
            drawn["errors"] = _thumbnail(marked, Image.Resampling.LANCZOS)
        columns = ["truth", "prediction", "errors"] if with_truth else ["prediction"]
        thumbnail = _thumbnail(picture, Image.Resampling.LANCZOS)
        cells.append([thumbnail, *(drawn.get(column) for column in columns)])
    entries = legend_entries(labels, classes, palette)
    if with_truth:
        entries.append(("wrong", WRONG_COLOUR))
    return _sheet(["picture", *columns], [row.caption for row in rows], cells, entries)


def augmentation_sheet(
    rows: Sequence[tuple[str, Sequence[tuple[ArrayLike, ArrayLike]]]],
    classes: Sequence[str],
    palette: ArrayLike,
) -> Image.Image:
    """Sets pictures, on the left, beside what augmentation makes of them, labels laid over.

    All are drawn at one height, whatever their sizes: 240 pixels.

    Args:
        rows: at least one `(caption, pairs)`: the pairs `(image, label)` as of `overlay`, the
            picture's first, as many in each row.
        classes: N names.
        palette: uint8 `(N, 3)`, RGB.

    Returns:
        An RGB picture with a legend of the classes that are laid.

    Raises:
        SegjaxError: a row's arrays are malformed or differ in size.
    """
    height, cells = 240, []
    for _, pairs in rows:
        overlays = [Image.fromarray(overlay(*pair, palette)) for pair in pairs]
        widths = [max(1, round(image.width * height / image.height)) for image in overlays]
        cells.append([o.resize((w, height)) for o, w in zip(overlays, widths, strict=True)])
    headings = ["picture", "augmented", *[""] * (len(cells[0]) - 2)]
    entries = _laid_entries([label for _, pairs in rows for _, label in pairs], classes, palette)
    return _sheet(headings, [caption for caption, _ in rows], cells, entries)


Entry = tuple[str, tuple[int, ...]]  # of a legend: a name and its colour


def _sheet(
    headings: Sequence[str],
    captions: Sequence[str],
    rows: Sequence[Sequence[Image.Image | None]],
    entries: Sequence[Entry],
) -> Image.Image:
    """Pictures in rows and columns on white: headings above, a caption over each row, a legend."""
    gap, line = 12, 24
    font, heading_font = _font(14), _font(16)
    lefts, right = [], gap
    for heading, column in zip(headings, zip(*rows, strict=True), strict=True):
        lefts.append(right)
        widths = [cell.width for cell in column if cell is not None]
        right += max(*widths, int(heading_font.getlength(heading)), 64) + gap
    width = max(right - gap, *(gap + int(font.getlength(caption)) for caption in captions)) - gap
    heights = [max(cell.height for cell in row if cell is not None) for row in rows]
    captioned = line if any(captions) else 0
    legend = _legend(entries, width, font)
    legend_top = gap + line + sum(heights) + (captioned + gap) * len(heights)
    size = (gap + legend.width + gap, legend_top + legend.height + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)

    for left, heading in zip(lefts, headings, strict=True):
        draw.text((left, gap - 2), heading, "#222", heading_font)
    top = gap + line
    for row, caption, height in zip(rows, captions, heights, strict=True):
        draw.text((gap, top), caption, "#222", font)
        top += captioned
        for left, cell in zip(lefts, row, strict=True):
            if cell is None:
                draw.text((left, top), "no truth", "#999", font)
                continue
            sheet.paste(cell, (left, top))
            draw.rectangle((left - 1, top - 1, left + cell.width, top + cell.height), None, "#bbb")
        top += height + gap
    sheet.paste(legend, (gap, legend_top))
    return sheet


def _laid_entries(
    labels: Sequence[ArrayLike], classes: Sequence[str], palette: ArrayLike
) -> list[Entry]:
    """Those of the classes that `overlay` lays."""
    unlaid = (BACKGROUND_COLOUR, VOID_COLOUR)
    return [entry for entry in legend_entries(labels, classes, palette) if entry[1] not in unlaid]


def _legend(entries: Sequence[Entry], width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Names beside their colours, in as many columns as `width` holds; one may be wider than it."""
    swatch, line = 16, 24
    step = swatch + 8 + max((int(font.getlength(name)) for name, _ in entries), default=0) + 16
    columns = max(1, width // step)
    legend = Image.new("RGB", (max(width, step), -(-len(entries) // columns) * line), "white")
    draw = ImageDraw.Draw(legend)
    for place, (name, colour) in enumerate(entries):
        top, left = (place // columns) * line, (place % columns) * step
        draw.rectangle((left, top, left + swatch, top + swatch), colour, "#bbb")
        draw.text((left + swatch + 8, top + swatch // 2), name, "#222", font, anchor="lm")
    return legend


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own, for Pillow's has no more than Latin letters: not even ×."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


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
    pixels = stored if stored.dtype == np.uint8 else np.rint(stored).astype(np.uint8)
    return np.repeat(pixels[..., :1], 3, axis=2) if pixels.shape[2] < 3 else pixels[..., :3]


def _check_same_size(picture: NDArray[np.uint8], label: NDArray[np.integer]) -> None:
    if picture.shape[:2] != label.shape:
        raise SegjaxError(
            "image and label: expected the same height and width, "
            f"got {picture.shape[:2]} and {label.shape}."
        )


def _outlines(label: NDArray[np.integer]) -> NDArray[np.bool_]:
    """True where one of the four neighbours has another label."""
    outlines = np.zeros(label.shape, bool)
    rows, columns = label[:-1] != label[1:], label[:, :-1] != label[:, 1:]
    outlines[:-1] |= rows
    outlines[1:] |= rows
    outlines[:, :-1] |= columns
    outlines[:, 1:] |= columns
    return outlines


def _thumbnail(picture: NDArray[np.uint8], reduce: Image.Resampling) -> Image.Image:
    image, side = Image.fromarray(picture), 320
    factor = side / max(image.size)
    if factor < 1:
        size = [max(1, round(length * factor)) for length in image.size]
        return image.resize((size[0], size[1]), reduce)
    whole = int(factor)
    return image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST)
