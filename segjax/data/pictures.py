"""One file of a picture or a mask -> an array, exactly or not at all.

Nothing here resizes, crops or augments, and no folder, data set or class name is known.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from segjax.errors import SegjaxError

try:
    import simplejpeg
except ImportError:  # the extra [jpeg]; Pillow gives the same bits, later
    simplejpeg = None

IGNORE = 255
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
_SHOWN = 5  # names or values listed in an error before "and N more"
_BITS_PER_SAMPLE = 258  # the TIFF tag
_ORIENTATION = 274  # the EXIF tag
TURNS = {
    2: "mirrored left to right",
    3: "turned by 180°",
    4: "mirrored top to bottom",
    5: "mirrored and turned by 90°",
    6: "turned by 90° clockwise",
    7: "mirrored and turned by 270°",
    8: "turned by 90° anticlockwise",
}
_BLENDS = 32  # so many unknown colours in a mask are those of smooth edges, not of classes
_BY_COLOUR = "Say with `colours` which colour is which class; the verb audit proposes the table"
_MASK_ADVICE = {  # Pillow's mode -> what to do with such a mask
    "RGB": _BY_COLOUR,
    "RGBA": _BY_COLOUR,
    "LA": "Remove its alpha",
    "F": "Store its values as integers",
}
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_NO_PICTURES = (  # how a file begins that no decoder knows -> what it is, and what to do
    (rb"\Z", "an empty file. Get it again, or remove it together with its partner."),
    (rb"version https://git-lfs", "a Git LFS pointer, not the picture itself. Run `git lfs pull`."),
    (rb"(?i)\s*<(!doctype html|html)", "a web page, as failed downloads leave. Get it again."),
    (rb"\x93NUMPY", "a NumPy array. Save it as PNG or TIFF."),
    (rb".{4}ftyp(heic|heix|mif1)", "a HEIC photograph. Convert it to JPEG or PNG."),
    (rb".{128}DICM", "a DICOM file. Convert it to TIFF."),
    (rb"[\t\n\r -~]+\Z", "a text file. Move it out of the folder of pictures or masks."),
)

File = str | Path | BinaryIO  # an open file is told in messages by its `str`
Ranges = tuple[tuple[float, float], ...]
Values = tuple[tuple[int, int], ...]
Colour = tuple[int, int, int]
Colours = tuple[tuple[Colour, int], ...]


class Unusable(SegjaxError):
    """A file that cannot be used: `kind` says in a few words what is wrong, the text all."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def read_picture(
    path: File, channels: int = 3, ranges: Ranges = (), page: int | None = None
) -> np.ndarray:
    """A picture as 8-bit grey, RGB or RGBA, or by stated ranges; its pixels in the order stored.

    Without `ranges`, a picture of any mode of at most 8 bits is converted: alpha is dropped unless
    `channels` is 4, and 255 where the file has none. More bits are refused, except of PPM, JPEG
    2000 and AVIF in colour: Pillow cuts these to 8 before it tells.

    With `ranges`, a picture of any number of channels, of 8, 16 or 32 bits or floats, is scaled
    so that a range's low end becomes 0 and its high end 255, and never converted nor clipped. A
    TIFF holds it as (H, W, C) or (C, H, W).

    EXIF orientation is not applied: a mask is stored in its picture's pixel order and carries no
    EXIF. (A TIFF's own Orientation tag is another matter: Pillow always applies it.)

    Args:
        path: a file that Pillow opens, or with `ranges` a TIFF.
        channels: 1 grey, 3 RGB, 4 RGBA; with `ranges`, as many as the file has.
        ranges: `(low, high)` of the stored values, one for all channels or one for each.
        page: of a file of several, from 0; None takes the file as one picture, or its first.

    Returns:
        (H, W, channels), writable, 0..255: uint8, or float32 with `ranges`.

    Raises:
        SegjaxError: channels or ranges do not fit; the file is no picture, is broken, or holds
            what would have to be cut or clipped: floats or more than 8 bits without `ranges`, NaN
            or values outside of them.
    """
    check_channels(channels, ranges)
    if ranges:
        return scaled(path, _samples(path, channels, page), ranges)
    with _opened(path, page) as image:
        _check_depth(image, path, page)
        if image.mode == _MODES[channels] and (sooner := _decoded(image)) is not None:
            return sooner
        # straight from a palette to grey or RGB, a transparent one draws a warning
        picture = image.convert("RGBA") if image.mode == "P" else image
        if picture.mode != _MODES[channels]:  # or it would be copied
            picture = picture.convert(_MODES[channels])
        pixels = np.array(picture)
    return pixels.reshape(*pixels.shape[:2], channels)


def _decoded(image: ImageFile.ImageFile) -> np.ndarray | None:
    """A JPEG's pixels (H, W, C) by simplejpeg, to the bit those that Pillow gives.

    Both are libjpeg-turbo, whose accurate transform and smooth chroma are the same everywhere. None
    of what is not to be had so, or has a flaw: then Pillow decodes, and says what is wrong.
    """
    space = {"L": "GRAY", "RGB": "RGB"}.get(image.mode)
    if simplejpeg is None or image.format != "JPEG" or space is None or image.fp is None:
        return None
    image.fp.seek(0)
    try:
        return simplejpeg.decode_jpeg(image.fp.read(), space)
    except ValueError:
        return None


class Codes(NamedTuple):
    """What a mask stores, before any of it is taken for a class.

    codes: (H, W) integers: the values, or with `coloured` red + 256 green + 65536 blue.
    coloured: whether they are colours.
    palette: of a palette picture, the colour's code of each of its values.
    """

    codes: np.ndarray
    coloured: bool = False
    palette: np.ndarray | None = None


def read_mask(
    path: File,
    num_classes: int,
    values: Values = (),
    page: int | None = None,
    colours: Colours = (),
) -> np.ndarray:
    """A mask as class indices: palette indices, 8- or 16-bit grey, or bilevel (0 and 1).

    255 = ignore, unless `values` says otherwise. With two classes, a mask of nothing but 0 and 255
    is refused until `values` names 255, for it nearly always means foreground, not ignore.

    With `colours`, a mask of any mode is read by what it looks like: the colours of its palette,
    grey as a colour of three equal parts.

    Args:
        path: a file that Pillow opens.
        num_classes: N, 1..255.
        values: `(stored value, class)`; a value that is not named keeps itself.
        page: of a file of several, from 0; None takes the file as one picture, or its first.
        colours: `((red, green, blue), class)`, a class being 0..N-1 or 255 = ignore.

    Returns:
        uint8 (H, W) of 0..N-1 and 255, writable.

    Raises:
        SegjaxError: the file is no picture or broken, is float or JPEG, is in colour without
            `colours`, or holds values or colours that are no class.
    """
    if colours:
        return _read_colours(path, num_classes, colours, page)
    table = label_table(num_classes, values)
    stored = _stored(path, page)
    labels = table.take(stored)  # twice as fast as table[stored]
    if labels.min() < 0:
        found, counts = np.unique(stored[labels < 0], return_counts=True)
        told = shown(f"{v} ({n} pixels)" for v, n in zip(found, counts, strict=True))
        raise Unusable(
            "values outside the classes",
            f"{path}: mask values {told} are no class. Expected 0..{num_classes - 1}, or 255 = "
            f"ignore. Correct the mask or the number of classes, or say what each value means with "
            f"`values`: values=(({found[0]}, 255),) ignores {found[0]}.",
        )
    if num_classes == 2 and IGNORE not in dict(values) and stored.max() == IGNORE:
        ignored = np.count_nonzero(stored)
        if np.count_nonzero(stored == IGNORE) == ignored < stored.size:
            raise Unusable(
                "mask of 0 and 255",
                f"{path}: this mask of two classes holds only 0 and 255 ({ignored} pixels), and "
                "255 = ignore. If 255 is class 1, pass values=((255, 1),); if it does mean "
                "ignore, say so with values=((255, 255),).",
            )
    return labels.astype(np.uint8)


def read_instances(path: File, page: int | None = None) -> np.ndarray:
    """A mask of instance numbers: uint16 (H, W), 0 = background, writable.

    Args:
        path: a file that Pillow opens, of 8 or 16 bits.
        page: of a file of several, from 0; None takes the file as one picture, or its first.

    Raises:
        SegjaxError: the file is no picture or broken, is in colour, float or JPEG, or holds
            integers beyond 16 bits.
    """
    return _stored(path, page).astype(np.uint16)


def read_codes(path: File, page: int | None = None, *, coloured: bool = False) -> Codes:
    """What a mask stores, be it values or colours: for who has to find out what they mean.

    Args:
        path: a file that Pillow opens.
        page: of a file of several, from 0; None takes the file as one picture, or its first.
        coloured: colours of a mask of values too, as `read_mask` takes it with `colours`.

    Raises:
        SegjaxError: the file is no picture or broken, is float or JPEG, or holds what no mask does:
            integers or colours of more than 16 or 8 bits, transparent pixels.
    """
    with _opened(path, page) as image:
        mode = image.mode
    if coloured or mode in {"RGB", "RGBA"}:
        return Codes(_colours(path, page), True)
    stored = _stored(path, page)
    if mode != "P":
        return Codes(stored)
    with _opened(path, page) as image:
        of_each: np.ndarray = np.zeros((256, 3), np.int32)
        rgb = np.array(image.getpalette("RGB"), np.int32).reshape(-1, 3)
        of_each[: len(rgb)] = rgb
    return Codes(stored, palette=of_each @ (1, 256, 65536))


def colour_of(code: int) -> Colour:
    """Red, green and blue of a code of `Codes`."""
    return code & 255, code >> 8 & 255, code >> 16


def check_channels(channels: int, ranges: Ranges) -> None:
    """Raise SegjaxError unless `read_picture` takes these."""
    if not ranges:
        if channels not in _MODES:
            raise SegjaxError(
                f"channels={channels!r}: expected 1 (grey), 3 (RGB) or 4 (RGBA). For other "
                "pictures say with `ranges` which stored values become 0 and 255."
            )
        return
    pairs = all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in ranges)
    if not pairs or len(ranges) not in (1, channels) or not all(a < b for a, b in ranges):
        raise SegjaxError(
            f"ranges={ranges}: expected (low, high) with low < high, one for all channels or one "
            f"for each of the {channels}, such as ranges=((0, 4095),), the last comma included."
        )


def check_palette(source: str, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
    """Raise SegjaxError, which names the source, unless there is a colour for each class."""
    if len(palette) != len(classes):
        raise SegjaxError(
            f"{source}: got {len(palette)} colours in `palette` for {len(classes)} classes. Give "
            "one (red, green, blue) per class."
        )


def label_table(num_classes: int, values: Values) -> np.ndarray:
    """int16 (65536,): the class of each stored value, -1 where there is none.

    Raises:
        SegjaxError: the number of classes or a value is out of range, or a value is named twice.
    """
    if not 1 <= num_classes <= 255:
        raise SegjaxError(
            f"got {num_classes} classes, expected 1 to 255. Name every class in `classes`, the "
            "background too."
        )
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in values):
        raise SegjaxError(
            f"values={values}: expected pairs (stored value, class), such as ((255, 1),), the last "
            "comma included."
        )
    table = np.full(65536, -1, np.int16)
    table[:num_classes] = np.arange(num_classes)
    table[IGNORE] = IGNORE
    for stored, label in values:
        known = 0 <= label < num_classes or label == IGNORE
        if not known or not 0 <= stored < 65536 or dict(values)[stored] != label:
            raise SegjaxError(
                f"values={values}: cannot map {stored} to {label}. Expected each stored value "
                f"(0..65535) once, with a class 0..{num_classes - 1} or 255 = ignore."
            )
        table[stored] = label
    return table


def check_colours(num_classes: int, colours: Colours) -> None:
    """Raise SegjaxError unless `read_mask` takes these."""
    for i, pair in enumerate(colours):
        fits = isinstance(pair, tuple | list) and len(pair) == 2
        parts = pair[0] if fits and isinstance(pair[0], tuple | list) else ()
        if len(parts) != 3 or not all(0 <= part <= 255 for part in parts):
            raise SegjaxError(
                f"colours={colours}: expected pairs of a colour and its class, such as "
                "(((0, 0, 0), 0), ((255, 0, 0), 1)), each part of a colour 0..255."
            )
        known = 0 <= pair[1] < num_classes or pair[1] == IGNORE
        if not known or tuple(parts) in [tuple(colour) for colour, _ in colours[:i]]:
            raise SegjaxError(
                f"colours={colours}: cannot map {tuple(parts)} to {pair[1]}. Expected each colour "
                f"once, with a class 0..{num_classes - 1} or 255 = ignore."
            )


@lru_cache(maxsize=4)
def _colour_table(colours: Colours) -> np.ndarray:
    """int16 (2**24,): the class of each colour's code, -1 where there is none."""
    table = np.full(1 << 24, -1, np.int16)
    for (red, green, blue), label in colours:
        table[red + 256 * green + 65536 * blue] = label
    return table


def picture_size(
    path: File, channels: int = 3, ranges: Ranges = (), page: int | None = None
) -> tuple[int, int]:
    """Height and width of what `read_picture` would read, from the file's header alone."""
    if ranges and _is_tiff(path):
        with _tiff(path, page) as samples:
            shape = samples.shape
        return shape[:2] if shape[2:] in ((), (channels,)) else shape[1:3]
    with _opened(path, page) as image:
        if not ranges:
            _check_depth(image, path, page)
        return image.height, image.width


def mask_size(path: File, page: int | None = None, *, coloured: bool = False) -> tuple[int, int]:
    """Height and width of what `read_mask` would read, from the file's header alone.

    `coloured` says that it would be given `colours`.
    """
    with _opened(path, page) as image:
        _check_mask_mode(image, path, coloured=coloured)
        return image.height, image.width


def orientation(path: File) -> int:
    """How viewers turn a picture, by its EXIF: 1 not at all, 2–8 mirrored or turned.

    We do not; see `read_picture`. Of a TIFF, which Pillow turns, 1.
    """
    if _is_tiff(path):
        return 1
    with _opened(path) as image:
        found = image.getexif().get(_ORIENTATION, 1)
        return found if found in TURNS else 1


def count_pages(path: File) -> int:
    """How many pages or frames a file has; a photograph's further views and layers are none."""
    with _opened(path) as image:
        return 1 if image.format in {"MPO", "PSD"} else getattr(image, "n_frames", 1)


def shown(items: Iterable[str]) -> str:
    """The first few, and how many more."""
    every = list(items)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


@contextmanager
def _opened(path: File, page: int | None = None) -> Iterator[ImageFile.ImageFile]:
    """An open picture, not decoded yet; what Pillow raises then or now becomes a SegjaxError."""
    with decoding(path), Image.open(path) as image:
        if page is not None:
            image.seek(page)
        yield image


def begins_as_tiff(start: bytes) -> bool:
    """Whether the first bytes of a file, four at least, are those of a TIFF or BigTIFF."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _is_tiff(path: File) -> bool:
    return Path(str(path)).suffix.lower() in {".tif", ".tiff"}


@contextmanager
def _tiff(path: File, page: int | None) -> Iterator[Any]:
    """A page or the first series of a TIFF, not decoded yet."""
    import tifffile  # Pillow knows neither many channels nor several of 16 bits

    with decoding(path), tifffile.TiffFile(path) as file:
        yield file.series[0] if page is None else file.pages[page]


def _bits(image: ImageFile.ImageFile) -> int:
    """How many bits a sample has in the file, of PNG and TIFF in colour too, before it is loaded.

    Pillow gives 8 bits of those without a word; of a TIFF of planes, the wrong ones.
    """
    if tags := getattr(image, "tag_v2", None):
        return max(tags.get(_BITS_PER_SAMPLE, (1,)))
    return 16 if image.mode[0] in "FI" or ";16" in str(image.tile) else 8


def _check_depth(image: ImageFile.ImageFile, path: File, page: int | None) -> None:
    """Raise unless 8 bits hold the samples of a picture."""
    if (bits := _bits(image)) > 8:
        grey = image.mode[0] in "FI"
        samples = np.asarray(image) if grey else _samples(path, len(image.getbands()), page)
        kind = "float" if image.mode == "F" else f"{bits}-bit"
        raise Unusable(
            f"{kind} picture",
            f"{path}: a {kind} picture (values {samples.min()} to {samples.max()}), expected at "
            "most 8 bits. Say with `ranges` which values become 0 and 255, ranges=((0, 65535),) "
            "for all of 16 bits, or save it with 8 bits.",
        )


def _check_mask_mode(image: ImageFile.ImageFile, path: File, *, coloured: bool = False) -> None:
    if image.format in {"JPEG", "MPO"}:
        raise Unusable(
            "JPEG mask",
            f"{path}: a JPEG, which changes class indices, most of all at borders. Make the mask "
            "anew as PNG from what it was drawn with: to convert this file does not mend it.",
        )
    if coloured and (image.mode not in {"1", "L", "P", "RGB", "RGBA"} or _bits(image) > 8):
        raise Unusable(
            "mask without colours",
            f"{path}: of mode {image.mode} and {_bits(image)} bits where colours of 8 bits are "
            "expected. Save it as RGB, or do not pass `colours`.",
        )
    if not coloured and image.mode not in {"1", "L", "P", "I"} and image.mode[:4] != "I;16":
        kind = "float" if image.mode == "F" else "colour"
        raise Unusable(
            f"{kind} mask",
            f"{path}: a {kind} picture (mode {image.mode}) where class indices are expected. "
            f"{_MASK_ADVICE.get(image.mode, 'Convert it')}. Or save the mask as palette or 8-bit "
            "grey PNG with the class index as pixel value.",
        )


def _read_colours(path: File, num_classes: int, colours: Colours, page: int | None) -> np.ndarray:
    """A mask as class indices, by the colours that its pixels look."""
    codes = _colours(path, page)
    check_colours(num_classes, colours)
    labels = _colour_table(tuple((tuple(colour), label) for colour, label in colours)).take(codes)
    if labels.min() < 0:
        found, counts = np.unique(codes[labels < 0], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        told = shown(f"{colour_of(int(found[i]))} ({counts[i]} pixels)" for i in order)
        blends = (
            f" {len(found)} colours in one mask are the blends of smooth edges: draw it without "
            "anti-aliasing, and resize masks by nearest neighbour."
        )
        raise Unusable(
            "colours of no class",
            f"{path}: mask colours (red, green, blue) {told} are in no class, {counts.sum()} of "
            f"{labels.size} pixels. Correct the mask, or say what each colour means with "
            "`colours`, where class 255 ignores it." + (blends if len(found) > _BLENDS else ""),
        )
    return labels.astype(np.uint8)


def _colours(path: File, page: int | None) -> np.ndarray:
    """The colours of a mask, int32 (H, W): red + 256 green + 65536 blue."""
    with _opened(path, page) as image:
        _check_mask_mode(image, path, coloured=True)
        pixels = np.asarray(image.convert("RGBA"))
    codes = np.ascontiguousarray(pixels).view("<u4")[..., 0]
    # What lies under a transparent pixel is seen by nobody: an editor may leave anything there.
    if (seen := codes >> 24).min() < 255:
        raise Unusable(
            "transparent mask",
            f"{path}: {np.count_nonzero(seen < 255)} of {seen.size} pixels of this mask are "
            "transparent. Lay it on a background of one colour, and save it without alpha.",
        )
    return (codes & 0xFFFFFF).astype(np.int32)


def _stored(path: File, page: int | None) -> np.ndarray:
    """The samples of a mask, integers (H, W) of 0..65535."""
    with _opened(path, page) as image:
        _check_mask_mode(image, path)
        # 2- and 4-bit grey: Pillow stretches to 0..255 as it loads, and tells so only before
        packing = str(image.tile[0][3]) if image.tile else ""
        stored = np.asarray(image)
    if stored.dtype == bool:
        return stored.astype(np.uint8)  # as an index it would select
    if stored.itemsize > 2 and (stored.min() < 0 or stored.max() > 65535):
        raise Unusable(
            "integers beyond 16 bits",
            f"{path}: integers from {stored.min()} to {stored.max()}, expected 0..65535. Save the "
            "mask as 8- or 16-bit PNG.",
        )
    step = {"L;2": 85, "L;4": 17}.get(packing)
    return stored // step if step else stored


def _samples(path: File, channels: int, page: int | None) -> np.ndarray:
    """The numbers as stored, (H, W, channels)."""
    if _is_tiff(path):
        with _tiff(path, page) as stored:
            samples = stored.asarray()
    else:
        with _opened(path, page) as image:
            flat = image.mode in {"1", "P"}
            if flat or (image.mode[0] not in "FI" and _bits(image) > 8):
                kind = "bilevel or palette picture" if flat else "16-bit picture"
                remedy = "Read it without `ranges`" if flat else "Save it with 8 bits"
                raise Unusable(
                    kind,
                    f"{path}: of a {kind} (mode {image.mode}) Pillow does not give the samples as "
                    f"stored. {remedy}, or save it as TIFF and say with `ranges` which values "
                    "become 0 and 255.",
                )
            samples = np.asarray(image)
    if samples.ndim == 2:
        samples = samples[..., None]
    if samples.ndim == 3 and samples.shape[-1] != channels:
        samples = np.moveaxis(samples, 0, -1)
    if samples.ndim != 3 or samples.shape[-1] != channels or samples.dtype.kind not in "uif":
        raise Unusable(
            "other channels",
            f"{path}: holds {samples.dtype} of shape {samples.shape}, expected numbers of (H, W, "
            f"{channels}) or ({channels}, H, W). Correct `channels`, or convert the file.",
        )
    return samples


def scaled(path: File, samples: np.ndarray, ranges: Ranges) -> np.ndarray:
    """Samples (H, W, C) as `read_picture` scales them: low -> 0, high -> 255; float32.

    Raises:
        SegjaxError: there are NaN or values outside of the ranges; names the file.
    """
    least, greatest = samples.min((0, 1)), samples.max((0, 1))
    if np.isnan(least).any():
        raise Unusable(
            "NaN",
            f"{path}: {np.isnan(samples).sum()} of its values are NaN. Fill them before training, "
            "and give these pixels the label 255 = ignore.",
        )
    low, high = np.array(ranges, np.float64).T
    if outside := np.flatnonzero((least < low) | (greatest > high)).tolist():
        i = outside[0]
        a, b = np.broadcast_to(ranges, (len(least), 2))[i]
        raise Unusable(
            "values outside the ranges",
            f"{path}: channel {i} holds values from {least[i]} to {greatest[i]}, outside the "
            f"stated range of {a:g} to {b:g}. Correct `ranges` or the file: nothing is clipped.",
        )
    return ((samples - low) * (255 / (high - low))).astype(np.float32)


@contextmanager
def decoding(path: File) -> Iterator[Any]:
    """What a decoder raises for a bad file becomes a SegjaxError that tells what is wrong."""
    try:
        if isinstance(path, str | Path):
            _check_kind(path)
        yield
    except SegjaxError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, …
        raise Unusable("unreadable file", f"{path}: {_reason(path, error)}") from error


def _check_kind(path: str | Path) -> None:
    """Raise unless it is a plain file: to open a pipe waits for ever, to read a device never ends.

    An OSError where there is none.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a device")
        raise Unusable("no file", f"{path}: {kind}, expected the file of a picture. Name another.")


def _reason(path: File, error: Exception) -> str:
    """What is wrong with a file that no decoder takes, and what to do."""
    if isinstance(error, OSError) and error.errno:  # the system's: decoders give no number
        return f"cannot be read: {error.strerror}. Correct the path or its permissions."
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than Pillow opens, 179 million. Cut it and its partner into parts."
    if "imagecodecs" in str(error):  # tifffile's, for LZW, JPEG, …
        return f"cannot be decoded: {error}. pip install imagecodecs, or save it uncompressed."
    with open(path, "rb") if isinstance(path, str | Path) else nullcontext(path) as file:
        file.seek(0)
        start = file.read(132)
        file.seek(0)
    for pattern, told in _NO_PICTURES:
        if re.match(pattern, start, re.DOTALL):
            return told
    if isinstance(error, UnidentifiedImageError):
        if not begins_as_tiff(start):
            return "not a picture that Pillow can open. Convert it to PNG, or remove it."
        with _tiff(path, None) as samples:
            return (
                f"a TIFF of {samples.dtype} of shape {samples.shape}, which Pillow cannot open. Of "
                "a picture, say its number of `channels`, and with `ranges` which values become 0 "
                "and 255, such as ranges=((0, 65535),); a mask has one channel of integers."
            )
    return (
        f"cannot be read as a picture: {error}. Get the file again, convert it to PNG, or remove "
        "it together with its partner."
    )
