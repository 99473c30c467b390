"""Pictures that are larger than memory, read some rows at a time.

TIFFs are read piece by piece (tiles or strips, as they are stored), arrays of NumPy by their place
in the file; what else Pillow opens is decoded whole, which its limit of pixels bounds.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segjax.data.pictures import (
    Ranges,
    Unusable,
    begins_as_tiff,
    check_channels,
    count_pages,
    decoding,
    picture_size,
    read_picture,
    scaled,
)
from segjax.errors import SegjaxError

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # samples of a pixel -> Pillow's mode
_TARGETS = {1: "L", 3: "RGB", 4: "RGBA"}
_WHITE_IS_ZERO, _PALETTE, _CMYK = 0, 3, 5  # TIFF's photometric interpretations
_DEFLATE = {8, 32946}  # TIFF's compressions by zlib
_REDUCED_OR_MASK = 1 | 4  # bits of TIFF's NewSubfileType
_PIECE = 2**30  # bytes of a decoded tile or strip
_DENSEST = 10_000  # bytes of pixels in a byte of a file; deflate's best is 1032


class Rows(NamedTuple):
    """A picture of which any rows can be read.

    size: its height and width.
    read: (first, last) -> these rows as `read_picture` gives pictures, (last - first, W, C).
    """

    size: tuple[int, int]
    read: Callable[[int, int], np.ndarray]


@contextmanager
def open_rows(
    path: str | Path, channels: int = 3, ranges: Ranges = (), page: int | None = None
) -> Iterator[Rows]:
    """A picture to be read by rows; these are those of `read_picture`, whose arguments they are.

    Beyond it, an array of NumPy (`.npy`) is taken: (H, W, C) in C order, or (H, W) of one channel,
    uint8, with `ranges` of any numbers. It is never unpickled.

    Raises:
        SegjaxError: also from `read`, as of `read_picture`; a TIFF is stored in pieces too large to
            decode, lacks some, or is of a kind that only a whole decoding gives.
    """
    check_channels(channels, ranges)
    path = Path(path)
    with decoding(path):
        kind = _kind(path)
    if kind == "npy":
        with path.open("rb") as array:
            with decoding(path):
                rows = _of_array(path, array, channels, ranges)
            yield rows  # outside, for what is raised there is no matter of the file
    elif kind == "tiff":
        import tifffile

        with decoding(path):
            file = tifffile.TiffFile(path)
        with file:
            with decoding(path):
                pages = _pages_of(path, file, channels, ranges, page)
                samples = _stacked([_Pieces(path, one) for one in pages])
                convert = _to_ranges(path, ranges) if ranges else _to_mode(path, pages[0], channels)
            yield Rows(_size(pages[0]), _checked(path, lambda a, z: convert(samples(a, z))))
    else:
        size = picture_size(path, channels, ranges, page)
        whole = cache(lambda: read_picture(path, channels, ranges, page))
        yield Rows(size, lambda first, last: whole()[first:last])


def size_of(
    path: Path, channels: int = 3, ranges: Ranges = (), page: int | None = None
) -> tuple[int, int]:
    """Height and width of what `open_rows` gives, from the file's header alone.

    Raises:
        SegjaxError: the file cannot be opened.
    """
    with decoding(path):
        kind = _kind(path)
    if kind == "npy":
        with open_rows(path, channels, ranges) as rows:
            return rows.size
    if kind == "tiff":
        import tifffile

        with suppress(SegjaxError), decoding(path), tifffile.TiffFile(path) as file:
            return _size(file.pages[page or 0].aspage())
    return picture_size(path, channels, ranges, page)


def pages_of(path: Path) -> list[int]:
    """The numbers of the pictures in a file: pages of a TIFF, but for reduced copies and masks.

    Raises:
        SegjaxError: the file cannot be opened.
    """
    with decoding(path):
        kind = _kind(path)
    if kind == "npy":
        return [0]
    if kind == "tiff" and (found := _tiff_pages(path)):
        return list(found)
    return list(range(count_pages(path)))


def _kind(path: Path) -> str:
    """`npy`, `tiff` or `other`, by how the file begins."""
    with path.open("rb") as file:
        start = file.read(6)
    if start == b"\x93NUMPY":
        return "npy"
    return "tiff" if begins_as_tiff(start) else "other"


def _checked(
    path: Path, read: Callable[[int, int], np.ndarray]
) -> Callable[[int, int], np.ndarray]:
    """A reader whose errors name the file."""

    def rows(first: int, last: int) -> np.ndarray:
        with decoding(path):
            return read(first, last)

    return rows


# Arrays of NumPy


def _of_array(path: Path, file: Any, channels: int, ranges: Ranges) -> Rows:
    """The rows of an array, at their place in the file: a mapped one would count as memory."""
    version = np.lib.format.read_magic(file)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in header:
        raise Unusable("other array", f"{path}: format {version} of NumPy. Save it with np.save.")
    try:
        shape, columns_first, dtype = header[version](file)
    except (ValueError, SyntaxError) as error:
        raise Unusable(
            "unreadable file", f"{path}: its header cannot be read: {error}. Save it with np.save."
        ) from error
    start = file.tell()
    of = "numbers" if ranges else "uint8"
    fits = shape[2:] == (channels,) or (channels == 1 and len(shape) == 2)
    numbers = dtype.kind in "uif" if ranges else dtype == np.uint8
    if not (len(shape) in (2, 3) and fits and numbers and min(shape) > 0) or columns_first:
        order = " in Fortran's order" if columns_first else ""
        raise Unusable(
            "other channels",
            f"{path}: an array of {dtype} of shape {shape}{order}, expected {of} of (H, W, "
            f"{channels}) in C's order. Convert it; of other numbers, say with `ranges` which "
            "become 0 and 255.",
        )
    row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    if (held := os.fstat(file.fileno()).st_size - start) < row * shape[0]:
        raise Unusable(
            "unreadable file",
            f"{path}: says that it holds an array of shape {shape}, {row * shape[0]} bytes, but "
            f"there are {held}. Get it again.",
        )
    convert = _to_ranges(path, ranges) if ranges else lambda x: x

    def read(first: int, last: int) -> np.ndarray:
        file.seek(start + first * row)
        data = bytearray(file.read((last - first) * row))
        return convert(np.frombuffer(data, dtype).reshape(last - first, shape[1], channels))

    return Rows((shape[0], shape[1]), _checked(path, read))


# TIFFs


def _tiff_pages(path: Path) -> dict[int, tuple[int, int]]:
    """The size of each page that is a picture, by its number; none where tifffile cannot tell."""
    import tifffile

    try:
        with decoding(path), tifffile.TiffFile(path) as file:
            pages = [file.pages[i].aspage() for i in range(len(file.pages))]
            full = [i for i, page in enumerate(pages) if not page.subfiletype & _REDUCED_OR_MASK]
            return {i: _size(pages[i]) for i in full or range(len(pages))}
    except SegjaxError:
        return {}


def _size(page: Any) -> tuple[int, int]:
    return int(page.imagelength), int(page.imagewidth)


def _pages_of(path: Path, file: Any, channels: int, ranges: Ranges, page: int | None) -> list[Any]:
    """The page that a picture is read from, or those that are its channels."""
    pages = [file.pages[page or 0].aspage()]
    if ranges and page is None and len(file.series[0].pages) > 1:
        pages = [one.aspage() for one in file.series[0].pages]
    for one in pages:
        _check_page(path, one)
    samples = sum(one.samplesperpixel for one in pages)
    alike = len({(_size(one), one.dtype) for one in pages}) == 1
    numbers = pages[0].dtype is not None and pages[0].dtype.kind in "uif"
    if ranges and not (samples == channels and alike and numbers):
        raise Unusable(
            "other channels",
            f"{path}: holds {pages[0].dtype} with {samples} channels, expected numbers with "
            f"{channels}. Correct `channels`, or convert the file.",
        )
    return pages


def _check_page(path: Path, page: Any) -> None:
    """Raise unless the pieces that the header tells of can be there and can be decoded."""
    height, width = _size(page)
    if min(height, width) < 1 or page.imagedepth != 1 or page.dtype is None:
        raise Unusable(
            "unreadable file",
            f"{path}: a TIFF of {height}×{width} pixels and {page.imagedepth} planes of "
            f"{page.dtype}, which is no picture. Convert it.",
        )
    pixels, stored = page.nbytes, page.parent.filehandle.size
    if pixels > _DENSEST * stored:
        raise Unusable(
            "unreadable file",
            f"{path}: says that it holds {height}×{width} pixels, {pixels} bytes, but is a file of "
            f"{stored}: no compression does that. Get it again.",
        )
    pieces = int(np.prod(page.chunked))
    if not len(page.dataoffsets) == len(page.databytecounts) == pieces:
        raise Unusable(
            "unreadable file",
            f"{path}: its header tells where {len(page.dataoffsets)} pieces of its pixels lie, "
            f"expected {pieces}. Get it again, or save it anew.",
        )
    piece = int(np.prod(page.chunks)) * page.dtype.itemsize
    if piece > _PIECE and not _in_one(page):
        raise Unusable(
            "large pieces",
            f"{path}: stored in pieces of {'×'.join(map(str, page.chunks))}, {piece / 2**30:.1f} "
            "GiB each when decoded. Save it by tiles, for instance of 512×512 pixels: "
            "`gdal_translate -co TILED=YES` or `vips tiffsave --tile`.",
        )


def _in_one(page: Any) -> bool:
    """Whether the pixels lie in the file as in an array (H, W, C)."""
    bits = page.dtype.itemsize * 8
    return bool(
        page.is_contiguous
        and page.compression == 1
        and page.planarconfig == 1
        and page.bitspersample == bits
        and page.fillorder == 1
        and page.predictor == 1
    )


class _Pieces:
    """The samples of a page, (rows, W, S) as stored, of any rows."""

    def __init__(self, path: Path, page: Any) -> None:
        self._path, self._page, self._file = path, page, page.parent.filehandle
        self._last: tuple[int, Any] = -1, None  # a strip may be met twice

    def __call__(self, first: int, last: int) -> np.ndarray:
        page = self._page
        height, width = _size(page)
        if _in_one(page):
            dtype = page.dtype.newbyteorder(page.parent.byteorder)
            row = width * page.samplesperpixel * dtype.itemsize
            data = self._bytes(page.dataoffsets[0] + first * row, (last - first) * row)
            samples = np.frombuffer(bytearray(data), dtype).astype(page.dtype, copy=False)
            return samples.reshape(last - first, width, -1)
        out = np.zeros((last - first, width, page.samplesperpixel), page.dtype)
        rows = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
        down, across = -(-height // rows), -(-width // page.tilewidth) if page.is_tiled else 1
        # Of separate planes, the pieces of one come after all those of the one before.
        for plane in range(len(page.dataoffsets) // (down * across)):
            for i in range(first // rows, -(-last // rows)):
                for j in range(across):
                    piece, (s, _, top, left, _) = self._decoded((plane * down + i) * across + j)
                    a, z = max(top, first), min(top + len(piece), last)
                    c = min(left + piece.shape[1], width)
                    part = piece[a - top : z - top, : c - left]
                    out[a - first : z - first, left:c, s : s + piece.shape[2]] = part
        return out

    def _decoded(self, index: int) -> tuple[np.ndarray, tuple[int, ...]]:
        if self._last[0] != index:
            page = self._page
            data = self._bytes(page.dataoffsets[index], page.databytecounts[index])
            if page.compression in _DEFLATE:
                self._check_inflates(data, index)
            self._last = index, page.decode(data, index, jpegtables=page.jpegtables)
        made, place, shape = self._last[1]
        if made is None:
            raise SegjaxError(
                f"{self._path}: piece {index} of its pixels is missing. Get it again."
            )
        return made[0, : shape[1], : shape[2]], place

    def _bytes(self, offset: int, count: int) -> bytes:
        """So many bytes of the file, if they are there."""
        if offset == 0 or count == 0:
            raise SegjaxError(
                f"{self._path}: a part of its pixels is missing. Get it again, or save it whole."
            )
        if offset + count > self._file.size:
            raise SegjaxError(
                f"{self._path}: ends at byte {self._file.size}, before its pixels do. Get it again."
            )
        self._file.seek(offset)
        return self._file.read(count)

    def _check_inflates(self, data: bytes, index: int) -> None:
        """Raise where a piece inflates to more than its pixels: a few bytes may make gigabytes."""
        page = self._page
        limit = int(np.prod(page.chunks)) * page.dtype.itemsize
        opened = zlib.decompressobj()
        opened.decompress(data, limit)
        if opened.unconsumed_tail and opened.decompress(opened.unconsumed_tail, 1):
            raise SegjaxError(
                f"{self._path}: piece {index} of its pixels inflates to more than their {limit} "
                "bytes. Get it again."
            )


def _stacked(pages: Sequence[_Pieces]) -> Callable[[int, int], np.ndarray]:
    """The samples of several pages as one picture's channels."""
    if len(pages) == 1:
        return pages[0]
    return lambda first, last: np.concatenate([page(first, last) for page in pages], -1)


def _to_ranges(path: Path, ranges: Ranges) -> Callable[[np.ndarray], np.ndarray]:
    return lambda samples: scaled(path, samples, ranges)


def _to_mode(path: Path, page: Any, channels: int) -> Callable[[np.ndarray], np.ndarray]:
    """What makes 8-bit grey, RGB or RGBA of a page's samples, as Pillow would of the whole.

    Raises:
        SegjaxError: Pillow alone could, or it holds more than 8 bits.
    """
    photometric, orientation = int(page.photometric), _value(page.tags, 274, 1)
    if page.bitspersample > 8 or page.dtype.kind == "f":
        kind = "float" if page.dtype.kind == "f" else f"{page.bitspersample}-bit"
        raise Unusable(
            f"{kind} picture",
            f"{path}: a {kind} picture, expected at most 8 bits. Say with `ranges` which values "
            "become 0 and 255, ranges=((0, 65535),) for all of 16 bits, or save it with 8 bits.",
        )
    plain = photometric in (_WHITE_IS_ZERO, 1, 2, _PALETTE, _CMYK, 6)
    samples = page.samplesperpixel
    if page.bitspersample not in (1, 8) or not plain or samples not in _MODES or orientation != 1:
        raise Unusable(
            "other TIFF",
            f"{path}: too large to be decoded whole, and by parts it cannot be: {samples} samples "
            f"of {page.bitspersample} bits, photometric interpretation {photometric}, orientation "
            f"{orientation}. Save it with 8 bits, as grey or RGB, without an Orientation tag.",
        )
    if photometric == _PALETTE:
        table = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
        return lambda x: _converted(table[x[..., 0]], "RGB", channels)
    mode = "CMYK" if photometric == _CMYK and samples == 4 else _MODES[samples]
    scale = 255 if page.bitspersample == 1 else 1

    def convert(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.uint8) * np.uint8(scale)
        if photometric == _WHITE_IS_ZERO:
            x = 255 - x
        return _converted(x, mode, channels)

    return convert


def _converted(x: np.ndarray, mode: str, channels: int) -> np.ndarray:
    """uint8 (H, W, S) of one of Pillow's modes -> (H, W, channels)."""
    if mode != _TARGETS[channels]:
        flat = np.ascontiguousarray(x[..., 0] if mode == "L" else x)
        image = Image.frombuffer(mode, (x.shape[1], x.shape[0]), flat, "raw", mode, 0, 1)
        x = np.asarray(image.convert(_TARGETS[channels]))
    return x.reshape(*x.shape[:2], channels)


def _value(tags: Mapping[int, Any], code: int, otherwise: int) -> int:
    return tags[code].value if code in tags else otherwise
