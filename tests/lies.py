"""TIFFs whose headers lie: what writes one, and what is told of it when it is read by rows."""

import zlib

import numpy as np
import tifffile

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (75, 50, 3), np.uint8)
GREY = PIXELS[..., 0]
TILED = {"tile": (32, 16), "photometric": "rgb"}


def changed(path, tag, value):
    """The TIFF with another value of a tag."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(value)


def lies_of_gigapixels(path):
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), compression="zlib")
    changed(path, "ImageWidth", 60_000)
    changed(path, "ImageLength", 60_000)
    changed(path, "RowsPerStrip", 60_000)


def lacks_a_tile(path):
    tifffile.imwrite(path, PIXELS, **TILED, compression="zlib")
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        offsets, counts = tags["TileOffsets"].value, tags["TileByteCounts"].value
    changed(path, "TileOffsets", (*offsets[:-1], 0))
    changed(path, "TileByteCounts", (*counts[:-1], 0))


def points_beyond_its_end(path):
    tifffile.imwrite(path, PIXELS, **TILED, compression="zlib")
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].tags["TileOffsets"].value
    changed(path, "TileOffsets", (*offsets[:-1], 2**31))


def inflates_without_end(path):
    """A tile of 16×16 pixels that inflates to a hundred megabytes."""
    tifffile.imwrite(path, GREY[:16, :16], tile=(16, 16), compression="zlib")
    bomb = zlib.compress(bytes(10**8), 9)
    data = path.read_bytes()
    path.write_bytes(data + bomb)
    changed(path, "TileOffsets", len(data))
    changed(path, "TileByteCounts", len(bomb))


def has_too_few_tiles(path):
    tifffile.imwrite(path, PIXELS, **TILED, compression="zlib")
    changed(path, "ImageLength", 200)


def holds_noise(path):
    tifffile.imwrite(path, PIXELS, **TILED, compression="zlib")
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].dataoffsets[3]
    data = bytearray(path.read_bytes())
    data[at : at + 9] = b"\xff" * 9
    path.write_bytes(data)


def is_cut(path):
    tifffile.imwrite(path, PIXELS, photometric="rgb")
    path.write_bytes(path.read_bytes()[:-99])


def has_huge_tiles(path):
    tifffile.imwrite(path, GREY, tile=(16, 16), compression="zlib")
    changed(path, "TileWidth", 65_520)
    changed(path, "TileLength", 65_520)
    with path.open("ab") as file:
        file.truncate(10**7)  # or it were told as too small for its pixels


LIES = {
    "gigapixels": (lies_of_gigapixels, "no compression does that"),
    "a missing tile": (lacks_a_tile, "a part of its pixels is missing"),
    "beyond the end": (points_beyond_its_end, "before its pixels do"),
    "a bomb in a tile": (inflates_without_end, "inflates to more than"),
    "few tiles": (has_too_few_tiles, "its header tells where"),
    "noise": (holds_noise, "cannot be"),
    "a cut file": (is_cut, "before its pixels do"),
    "huge tiles": (has_huge_tiles, "pieces"),
}
