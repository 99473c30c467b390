"""Drawn pictures and masks of VOC's size and layout, whose files are about as large as VOC's."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (375, 500)


def draw(folder: Path, count: int) -> None:
    """So many, all different, by two processes; their list is that of the split train."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(partial(_draw_one, folder), range(count), chunksize=50))
    names = "\n".join(f"{i:05}" for i in range(count))
    (folder / "ImageSets/Segmentation/train.txt").write_text(names + "\n")


def _draw_one(folder: Path, i: int) -> None:
    rng = np.random.default_rng(i)
    coarse = rng.integers(0, 256, (47, 63, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    noise = rng.normal(0, 25, (*SIZE, 3))
    picture = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(picture).save(folder / f"JPEGImages/{i:05}.jpg", quality=85)
    blobs = Image.fromarray(rng.integers(0, 21, (6, 8), np.uint8))
    mask = blobs.resize(SIZE[::-1], Image.Resampling.NEAREST).convert("P")
    mask.save(folder / f"SegmentationClass/{i:05}.png")
