"""Labels and probabilities are written by rows as TIFFs, in their place on the Earth."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segjax.data.tiff_writer import cloud_optimised, georeference, write_tiff
from segjax.errors import SegjaxError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (75, 50), np.uint8)
OF = (  # where a GeoTIFF lies
    (33550, "d", 3, (0.5, 0.5, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 440720.0, 3751320.0, 0.0), True),
    (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), True),
)


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
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    assert georeference(tmp_path / "a.tif") == []
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
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.setitem(sys.modules, "rasterio.shutil", None)
    with pytest.raises(SegjaxError, match=r"pip install 'segjax\[geo\]'"):
        cloud_optimised(Path("a.tif"))
