"""Pictures read by rows are those that `read_picture` reads."""

import struct

import numpy as np
import pytest
import tifffile
from lies import LIES
from PIL import Image

from segjax.data.pictures import read_picture
from segjax.data.rows import open_rows, pages_of, size_of
from segjax.errors import SegjaxError

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (15, 10, 3), np.uint8), np.ones((5, 5, 1), np.uint8))
GREY, SIXTEEN = PIXELS[..., 0], (PIXELS[..., 0].astype(np.uint16) << 6)
ALPHA = np.concatenate([PIXELS, PIXELS[..., :1]], -1)
TILED = {"tile": (32, 16)}


def written(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)
    return path


def all_rows(path, *given, step=7):
    with open_rows(path, *given) as rows:
        height = rows.size[0]
        assert size_of(path, *given) == rows.size
        parts = [rows.read(a, min(a + step, height)) for a in range(0, height, step)]
        np.testing.assert_array_equal(rows.read(10, 30), np.concatenate(parts)[10:30])
        return np.concatenate(parts)


STORED = {
    "strips": (PIXELS, {}),
    "strips of 8 rows": (PIXELS, {"rowsperstrip": 8, "compression": "zlib"}),
    "one strip, deflated": (PIXELS, {"rowsperstrip": 75, "compression": "zlib"}),
    "tiles": (PIXELS, TILED),
    "tiles, deflated": (PIXELS, {**TILED, "compression": "zlib", "predictor": True}),
    "BigTIFF": (PIXELS, {**TILED, "bigtiff": True}),
    "big-endian": (PIXELS, {"byteorder": ">"}),
    "planes": (
        np.moveaxis(PIXELS, -1, 0).copy(),
        {"photometric": "rgb", "planarconfig": "separate"},
    ),
    "planes in tiles": (
        np.moveaxis(PIXELS, -1, 0).copy(),
        {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib", **TILED},
    ),
    "grey": (GREY, TILED),
    "white is zero": (GREY, {"photometric": "miniswhite", **TILED}),
    "alpha": (ALPHA, {"photometric": "rgb", "extrasamples": ["unassalpha"], **TILED}),
    "bilevel": (GREY > 99, {}),
    "palette": (
        GREY,
        {"photometric": "palette", "colormap": RNG.integers(0, 256, (3, 256)).astype("u2") * 256},
    ),
    "CMYK": (ALPHA, {"photometric": "separated"}),
}


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_tiff_by_rows_is_what_pillow_reads(name, channels, tmp_path):
    pixels, options = STORED[name]
    options = {"photometric": "rgb"} | options if pixels.ndim == 3 else options
    path = written(tmp_path / "a.tif", pixels, **options)
    got = all_rows(path, channels)
    want = read_picture(path, channels)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "pixels, channels, options",
    [
        (SIXTEEN, 1, {}),
        (SIXTEEN, 1, {"byteorder": ">"}),
        (SIXTEEN, 1, {"compression": "zlib", "byteorder": ">", **TILED}),
        (np.stack([SIXTEEN] * 5, -1), 5, {"photometric": "minisblack", "planarconfig": "contig"}),
        (np.stack([SIXTEEN, SIXTEEN // 2, SIXTEEN]), 3, {"photometric": "minisblack"}),
        (SIXTEEN.astype(np.float32), 1, {"compression": "zlib", **TILED}),
    ],
    ids=["16 bits", "big-endian", "deflated", "5 channels", "pages", "floats"],
)
def test_ranges_by_rows(pixels, channels, options, tmp_path):
    path, ranges = written(tmp_path / "a.tif", pixels, **options), ((0, 20_000),)
    got = all_rows(path, channels, ranges)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, read_picture(path, channels, ranges))
    with open_rows(path, channels, ((0, 10),)) as rows, pytest.raises(SegjaxError, match="outside"):
        rows.read(0, 5)


def test_pages_and_reduced_copies(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PIXELS, photometric="rgb")
        file.write(PIXELS[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(255 - PIXELS, photometric="rgb")
    assert pages_of(tmp_path / "a.tif") == [0, 2]
    np.testing.assert_array_equal(all_rows(tmp_path / "a.tif", 3, (), 2), 255 - PIXELS)
    Image.fromarray(PIXELS).save(tmp_path / "b.png")
    assert pages_of(tmp_path / "b.png") == [0]


def test_a_first_page_that_is_a_reduced_copy_has_a_size(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PIXELS[::2, ::2], subfiletype=1)
        file.write(PIXELS)
    assert pages_of(tmp_path / "a.tif") == [1]
    for page, size in ((None, (38, 25)), (0, (38, 25)), (1, (75, 50))):
        with open_rows(tmp_path / "a.tif", page=page) as rows:
            assert size_of(tmp_path / "a.tif", page=page) == rows.size == size


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_what_pillow_opens_is_decoded_whole(suffix, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(
        all_rows(tmp_path / f"a.{suffix}"), read_picture(tmp_path / f"a.{suffix}")
    )


def test_arrays_of_numpy(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, PIXELS)
    np.testing.assert_array_equal(all_rows(path), PIXELS)
    np.save(path, GREY)
    np.testing.assert_array_equal(all_rows(path, 1), GREY[..., None])
    np.save(path, SIXTEEN.astype(">u2"))
    np.testing.assert_allclose(all_rows(path, 1, ((0, 20_000),))[..., 0], SIXTEEN * (255 / 20_000))
    assert pages_of(path) == [0]


ARRAYS = {
    "objects": (np.array([[{}]], object), "an array of object"),
    "Fortran": (np.asfortranarray(PIXELS), "Fortran's order, expected uint8 of"),
    "floats": (PIXELS / 255, "an array of float64"),
    "flat": (PIXELS.ravel(), "of shape (11250,)"),
    "four": (PIXELS[None], "of shape (1, 75, 50, 3)"),
    "nothing": (PIXELS[:0], "of shape (0, 50, 3)"),
    "records": (np.zeros((3, 3), [("a", "u1")]), "an array of [('a', 'u1')]"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_other_arrays_are_told(name, tmp_path):
    array, told = ARRAYS[name]
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(SegjaxError) as error, open_rows(tmp_path / "a.npy"):
        pass
    assert told in str(error.value) and "a.npy" in str(error.value)


def test_an_array_that_is_cut(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, PIXELS)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SegjaxError, match="says that it holds an array of shape"), open_rows(path):
        pass
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + b"{'descr': __import__('os')}")
    with pytest.raises(SegjaxError, match="its header cannot be read"), open_rows(path):
        pass


# TIFFs that lie


@pytest.mark.parametrize("name", LIES)
def test_a_tiff_that_lies_is_told(name, tmp_path):
    path = tmp_path / "a.tif"
    make, told = LIES[name]
    make(path)
    with pytest.raises(SegjaxError) as error, open_rows(path, 1) as rows:
        for first in range(0, rows.size[0], 16):
            rows.read(first, min(first + 16, rows.size[0]))
    assert told in str(error.value) and str(path) in str(error.value)


def test_what_only_a_whole_decoding_gives_is_told(tmp_path):
    path = tmp_path / "a.tif"
    for pixels, options, told in (
        (SIXTEEN, {}, "a 16-bit picture"),
        (GREY.astype(np.float32), {}, "a float picture"),
        (PIXELS, {"photometric": "cielab"}, "photometric interpretation 8"),
        (PIXELS, {"photometric": "rgb", "extratags": [(274, "H", 1, 6, True)]}, "orientation 6"),
    ):
        written(path, pixels, **options)
        with pytest.raises(SegjaxError, match=told), open_rows(path):
            pass
