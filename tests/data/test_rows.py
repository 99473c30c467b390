"""Pictures read by rows are those that `read_picture` reads; TIFFs are written by rows."""

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from lies import LIES
from PIL import Image

from segjax.data.pictures import read_picture
from segjax.data.rows import (
    cloud_optimised,
    georeference,
    open_rows,
    pages_of,
    size_of,
    write_tiff,
)
from segjax.errors import SegjaxError

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (15, 10, 3), np.uint8), np.ones((5, 5, 1), np.uint8))
GREY, SIXTEEN = PIXELS[..., 0], (PIXELS[..., 0].astype(np.uint16) << 6)
ALPHA = np.concatenate([PIXELS, PIXELS[..., :1]], -1)
TILED = {"tile": (32, 16)}
OF = (  # where a GeoTIFF lies
    (33550, "d", 3, (0.5, 0.5, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0), True),
    (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), True),
)


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


# What is written


@pytest.mark.parametrize("size", [(5, 7), (512, 512), (600, 1100)])
def test_labels_are_written_by_rows(size, tmp_path):
    labels = RNG.integers(0, 3, size, np.uint8)
    labels[0, 0] = 255
    read = []

    def rows(first, last):
        read.append(last - first)
        return labels[first:last]

    palette = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
    write_tiff(tmp_path / "a.tif", rows, size, palette=palette, description="three", tags=OF)
    assert max(read) <= 512 and [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(image, labels)
        colours = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(colours[labels == 2][:1], [[0, 0, 255]])
    np.testing.assert_array_equal(colours[0, 0], [224, 224, 192])
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages[0]
        assert page.tile == (512, 512) and page.compression == 8 and page.description == "three"
    assert georeference(tmp_path / "a.tif") == list(OF)


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_bands_are_written_by_rows(bands, tmp_path):
    values = RNG.integers(0, 256, (600, 530, bands), np.uint8)
    write_tiff(tmp_path / "a.tif", lambda a, z: values[a:z], (600, 530), bands=bands)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif").reshape(values.shape), values)


def test_an_interrupted_writing_leaves_no_file(tmp_path):
    def rows(first, last):
        raise SegjaxError("no")

    with pytest.raises(SegjaxError):
        write_tiff(tmp_path / "a.tif", rows, (600, 600))
    assert not (tmp_path / "a.tif").exists()


def test_georeference_of_what_has_none(tmp_path):
    assert georeference(written(tmp_path / "a.tif", GREY)) == []
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert georeference(tmp_path / "a.png") == []


def test_rasterio_finds_the_label_in_its_place(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    source = tmp_path / "a.tif"
    options = {"width": 50, "height": 75, "count": 1, "dtype": "uint8", "driver": "GTiff"}
    transform = rasterio.Affine(0.5, 0, 440720, 0, -0.5, 3751320)
    with rasterio.open(source, "w", crs="EPSG:32633", transform=transform, **options) as file:
        file.write(GREY, 1)
    labels = (GREY > 99).astype(np.uint8)
    write_tiff(
        tmp_path / "b.tif",
        lambda a, z: labels[a:z],
        labels.shape,
        palette=((0, 0, 0), (9, 8, 7)),
        tags=georeference(source),
    )
    for _ in range(2):
        with rasterio.open(tmp_path / "b.tif") as file:
            assert file.crs == rasterio.CRS.from_epsg(32633) and file.transform == transform
            np.testing.assert_array_equal(file.read(1), labels)
            assert file.colormap(1)[1] == (9, 8, 7, 255)
            layout = file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT")
        cloud_optimised(tmp_path / "b.tif")
    assert layout == "COG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]


def test_without_rasterio_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    monkeypatch.setitem(__import__("sys").modules, "rasterio.shutil", None)
    with pytest.raises(SegjaxError, match=r"pip install 'segjax\[geo\]'"):
        cloud_optimised(Path("a.tif"))
