"""TIFFs of labels or probabilities, written some rows at a time: of tiles, deflated, as every GIS
and slide viewer opens them, and in their place on the Earth.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data.pictures import begins_as_tiff, decoding
from segjax.errors import SegjaxError

# Where on the Earth a picture lies, and in which coordinates: GeoTIFF's six tags.
_GEOREFERENCE = {33550: "d", 33922: "d", 34264: "d", 34735: "H", 34736: "d", 34737: "s"}
_TILE = 512  # side of the tiles that are written


def georeference(path: Path, page: int | None = None) -> list[tuple[Any, ...]]:
    """The tags of a GeoTIFF that say where it lies, for `write_tiff`; none of another file."""
    with decoding(path), path.open("rb") as start:
        if not begins_as_tiff(start.read(4)):
            return []
    import tifffile

    with decoding(path), tifffile.TiffFile(path) as file:
        tags = file.pages[page or 0].aspage().tags
        return [
            (code, kind, 0 if kind == "s" else tags[code].count, tags[code].value, True)
            for code, kind in _GEOREFERENCE.items()
            if code in tags
        ]


def write_tiff(
    path: Path,
    read: Callable[[int, int], np.ndarray],
    size: tuple[int, int],
    *,
    bands: int = 0,
    palette: Sequence[tuple[int, int, int]] = (),
    description: str = "",
    tags: Sequence[tuple[Any, ...]] = (),
) -> None:
    """Write a tiled, deflated TIFF some rows at a time; a BigTIFF from 2 GiB of pixels on.

    Args:
        path: the file, which is whole or not there.
        read: (first, last) -> uint8 rows, (last - first, W), or (last - first, W, bands).
        size: H and W.
        bands: of each pixel; 0 for one that has no axis.
        palette: of class indices, the colours to show them in; 255 is void.
        description: the TIFF's own.
        tags: further ones, as `georeference` gives them.

    Raises:
        SegjaxError: what `read` raises.
        OSError: it cannot be written.
    """
    import tifffile

    height, width = size
    shape = (height, width, bands) if bands > 1 else (height, width)

    def tiles() -> Iterator[np.ndarray]:
        for top in range(0, height, _TILE):
            rows = read(top, min(top + _TILE, height)).reshape(-1, *shape[1:])
            for left in range(0, width, _TILE):
                tile = np.zeros((_TILE, _TILE, *shape[2:]), np.uint8)
                part = rows[:, left : left + _TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile

    unfinished = path.with_name(path.name + ".writing")
    kind: dict[str, Any] = {"photometric": "minisblack"}
    if bands > 1:
        kind["planarconfig"] = "contig"
    if palette:
        table = np.zeros((256, 3), np.uint16)
        table[: len(palette)] = palette
        table[255] = (224, 224, 192)  # as in the masks of PASCAL VOC
        kind = {"photometric": "palette", "colormap": table.T * 257}
    try:
        with tifffile.TiffWriter(unfinished, bigtiff=bands * height * width > 2**31) as file:
            file.write(
                tiles(),
                shape=shape,
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                compression="zlib",
                description=description or None,
                metadata=None,
                extratags=list(tags),
                software="segjax",
                **kind,
            )
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def cloud_optimised(path: Path) -> None:
    """Make a TIFF of labels a Cloud-Optimised GeoTIFF, with reduced copies; needs rasterio.

    Raises:
        SegjaxError: rasterio is not installed, or cannot make it.
    """
    try:
        import rasterio.shutil
    except ImportError:
        raise SegjaxError(
            "A Cloud-Optimised GeoTIFF is written by rasterio: pip install 'segjax[geo]', or leave "
            "it a plain TIFF."
        ) from None
    made = path.with_name(path.name + ".writing")
    options = {"COMPRESS": "DEFLATE", "OVERVIEW_RESAMPLING": "NEAREST", "BIGTIFF": "IF_SAFER"}
    try:
        with rasterio.Env(GDAL_CACHEMAX=64):  # MiB; by default 5 % of the memory
            rasterio.shutil.copy(path, made, driver="COG", **options)
    except rasterio.errors.RasterioError as error:
        made.unlink(missing_ok=True)
        raise SegjaxError(f"{path}: rasterio makes no Cloud-Optimised GeoTIFF: {error}.") from error
    os.replace(made, path)
