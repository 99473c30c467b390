"""One file of a picture or a mask -> an array, exactly or not at all.

Nothing here resizes, crops or augments, and no folder, data set or class name is known.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from segjax.errors import SegjaxError

IGNORE = 255
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
_SHOWN = 5  # names or values listed in an error before "and N more"

File = str | Path | BinaryIO  # an open file is told in messages by its `str`
Ranges = tuple[tuple[float, float], ...]
Values = tuple[tuple[int, int], ...]


class Unusable(SegjaxError):
    """A file that cannot be used: `kind` says in a few words what is wrong, the text all."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def read_picture(
    path: File, channels: int = 3, ranges: Ranges = (), page: int | None = None
) -> np.ndarray:
    """A picture as 8-bit grey, RGB or RGBA, or by stated ranges; its pixels in the order stored.

    Without `ranges`, a picture of any mode is converted: 16-bit grey is scaled from its full
    range, 65535 -> 255; alpha is dropped unless `channels` is 4, and 255 where the file has none.

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
            what would have to be clipped: floats or integers beyond 16 bits without `ranges`, NaN
            or values outside of them.
    """
    check_channels(channels, ranges)
    if ranges:
        return _scaled(path, _samples(path, channels, page), ranges)
    with _opened(path, page) as image:
        if image.mode == "F":
            low, high = image.getextrema()
            raise Unusable(
                "float picture",
                f"{path}: a float picture (values {low} to {high}), expected integers of 8 or 16 "
                "bits. Say with `ranges` which values become 0 and 255: ranges=((low, high),).",
            )
        picture: Image.Image = image
        if image.mode.startswith("I"):
            # Pillow's own convert("L") would clip at 255
            grey = (_integers(image, path).astype(np.int32) + 128) // 257
            picture = Image.fromarray(grey.astype(np.uint8))
        elif image.mode == "P":
            # straight to grey or RGB, a transparent palette draws a warning
            picture = image.convert("RGBA")
        if picture.mode != _MODES[channels]:  # or it would be copied
            picture = picture.convert(_MODES[channels])
        pixels = np.array(picture)
    return pixels.reshape(*pixels.shape[:2], channels)


def read_mask(
    path: File, num_classes: int, values: Values = (), page: int | None = None
) -> np.ndarray:
    """A mask as class indices: palette indices, 8- or 16-bit grey, or bilevel (0 and 1).

    255 = ignore, unless `values` says otherwise. With two classes, a mask of nothing but 0 and 255
    is refused until `values` names 255, for it nearly always means foreground, not ignore.

    Args:
        path: a file that Pillow opens.
        num_classes: N, 1..255.
        values: `(stored value, class)`; a value that is not named keeps itself.
        page: of a file of several, from 0; None takes the file as one picture, or its first.

    Returns:
        uint8 (H, W) of 0..N-1 and 255, writable.

    Raises:
        SegjaxError: the file is no picture or broken, is in colour or float, or holds values that
            are no class.
    """
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
            f"`values`: (({found[0]}, 255),) ignores {found[0]}.",
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
        SegjaxError: the file is no picture or broken, is in colour or float, or holds integers
            beyond 16 bits.
    """
    return _stored(path, page).astype(np.uint16)


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
            f"for each of the {channels}, such as ((0, 4095),), the last comma included."
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


def picture_size(
    path: File, channels: int = 3, ranges: Ranges = (), page: int | None = None
) -> tuple[int, int]:
    """Height and width of what `read_picture` would read, from the file's header alone."""
    if ranges and _is_tiff(path):
        with _tiff(path, page) as samples:
            shape = samples.shape
        return shape[:2] if shape[2:] in ((), (channels,)) else shape[1:3]
    with _opened(path, page) as image:
        return image.height, image.width


def mask_size(path: File, page: int | None = None) -> tuple[int, int]:
    """Height and width of what `read_mask` would read, from the file's header alone."""
    with _opened(path, page) as image:
        _check_mask_mode(image, path)
        return image.height, image.width


def count_pages(path: File) -> int:
    """How many pages or frames a file has."""
    with _opened(path) as image:
        return getattr(image, "n_frames", 1)


def shown(items: Iterable[str]) -> str:
    """The first few, and how many more."""
    every = list(items)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


@contextmanager
def _opened(path: File, page: int | None = None) -> Iterator[ImageFile.ImageFile]:
    """An open picture, not decoded yet; what Pillow raises then or now becomes a SegjaxError."""
    with _told(path), Image.open(path) as image:
        if page is not None:
            image.seek(page)
        yield image


def _is_tiff(path: File) -> bool:
    return Path(str(path)).suffix.lower() in {".tif", ".tiff"}


@contextmanager
def _tiff(path: File, page: int | None) -> Iterator[Any]:
    """A page or the first series of a TIFF, not decoded yet."""
    import tifffile  # Pillow knows neither many channels nor several of 16 bits

    with _told(path), tifffile.TiffFile(path) as file:
        yield file.series[0] if page is None else file.pages[page]


def _check_mask_mode(image: Image.Image, path: File) -> None:
    if image.mode not in {"1", "L", "P", "I"} and not image.mode.startswith("I;16"):
        kind = "float" if image.mode == "F" else "colour"
        raise Unusable(
            f"{kind} mask",
            f"{path}: a {kind} picture (mode {image.mode}) where class indices are expected. "
            "Save the mask as palette or 8-bit grey PNG with the class index as pixel value.",
        )


def _stored(path: File, page: int | None) -> np.ndarray:
    """The samples of a mask, integers (H, W) of 0..65535."""
    with _opened(path, page) as image:
        _check_mask_mode(image, path)
        # 2- and 4-bit grey: Pillow stretches to 0..255 as it loads, and tells so only before
        packing = str(image.tile[0][3]) if image.tile else ""
        stored = _integers(image, path)
    step = {"L;2": 85, "L;4": 17}.get(packing)
    return stored // step if step else stored


def _integers(image: Image.Image, path: File) -> np.ndarray:
    """The samples of a picture of one integer channel, (H, W) of 0..65535."""
    samples = np.asarray(image)
    if samples.dtype == bool:
        return samples.astype(np.uint8)  # as an index it would select
    if samples.itemsize > 2 and (samples.min() < 0 or samples.max() > 65535):
        raise Unusable(
            "integers beyond 16 bits",
            f"{path}: integers from {samples.min()} to {samples.max()}, expected at most 16 bits "
            "(0..65535). Save a mask as 8- or 16-bit PNG; of a picture, say with `ranges` which "
            "values become 0 and 255.",
        )
    return samples


def _samples(path: File, channels: int, page: int | None) -> np.ndarray:
    """The numbers as stored, (H, W, channels)."""
    if _is_tiff(path):
        with _tiff(path, page) as stored:
            samples = stored.asarray()
    else:
        with _opened(path, page) as image:
            packing = str(image.tile[0][3]) if image.tile else ""
            if image.mode in {"1", "P"} or (image.mode[0] in "LR" and ";16" in packing):
                raise Unusable(
                    "samples not as stored",
                    f"{path}: of this picture (mode {image.mode}, {packing}) Pillow does not give "
                    "the samples as stored. Save it as TIFF, or read it without `ranges`.",
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


def _scaled(path: File, samples: np.ndarray, ranges: Ranges) -> np.ndarray:
    """float32: what is low -> 0, what is high -> 255, all else between."""
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
def _told(path: File) -> Iterator[Any]:
    """What a decoder raises for a bad file becomes a SegjaxError."""
    try:
        yield
    except SegjaxError:
        raise
    except UnidentifiedImageError as error:
        raise Unusable(
            "unreadable file",
            f"{path}: not a picture that Pillow can open. Convert it to PNG, or remove it; for a "
            "TIFF of many channels, state `ranges`.",
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, …
        advice = "Get the file again, convert it to PNG, or remove it together with its partner."
        if "imagecodecs" in str(error):  # tifffile's, for LZW, JPEG, …
            advice = "pip install imagecodecs, or save it as TIFF without compression."
        raise Unusable(
            "unreadable file", f"{path}: cannot be read as a picture: {error}. {advice}"
        ) from error
