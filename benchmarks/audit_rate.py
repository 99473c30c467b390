"""How long does an audit of 12,000 pictures and masks take?

    python benchmarks/audit_rate.py
    python benchmarks/audit_rate.py --count 600

Prints a Markdown table. JPEG pictures and palette PNG masks of 500×375 pixels, all different, are
drawn by two processes into a temporary folder, and then audited on all cores; what was just written
is still in memory, so that no disk is waited for.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from segjax.data import layouts
from segjax.data.audit import Reading, audit
from segjax.data.labels import voc_palette
from segjax.errors import SegjaxError

SIZE = (375, 500)


def draw(folder: Path, i: int) -> None:
    """Picture and mask i, whose files are about as large as VOC's."""
    rng = np.random.default_rng(i)
    coarse = rng.integers(0, 256, (47, 63, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    noise = rng.normal(0, 25, (*SIZE, 3))
    picture = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(picture).save(folder / f"JPEGImages/{i:05}.jpg", quality=85)
    blobs = Image.fromarray(rng.integers(0, 21, (6, 8), np.uint8))
    mask = blobs.resize(SIZE[::-1], Image.Resampling.NEAREST)
    mask.putpalette(np.uint8(voc_palette(21)).tobytes())
    mask.save(folder / f"SegmentationClass/{i:05}.png")


def draw_all(folder: Path, count: int) -> None:
    """They lie in VOC's layout."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(partial(draw, folder), range(count), chunksize=50))
    names = "\n".join(f"{i:05}" for i in range(count))
    (folder / "ImageSets/Segmentation/train.txt").write_text(names + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=12_000, help="of the pictures")
    options = parser.parse_args()
    read_at = 0.0

    def track(
        items: Iterable[Reading | SegjaxError], name: str, total: int
    ) -> Iterator[Reading | SegjaxError]:
        nonlocal read_at
        yield from items
        read_at = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        draw_all(Path(folder), options.count)
        files = [*Path(folder).glob("JPEGImages/*.jpg")]
        kilobytes = statistics.mean(path.stat().st_size for path in files) / 1000
        start = time.perf_counter()
        found = audit({"train": layouts.voc(Path(folder))}, track)
        end = time.perf_counter()
    assert not found.findings, found.findings
    print(f"`{shlex.join(['python', *sys.argv])}`: {len(os.sched_getaffinity(0))} cores;")
    print(f"{options.count:,} pictures, JPEG files of {kilobytes:.0f} kB on average.\n")
    print("| audit | s | a second |\n|---|---:|---:|")
    for name, spent in (
        ("reading, counting, hashes and fingerprints", read_at - start),
        ("comparison of all fingerprints", end - read_at),
        ("whole", end - start),
    ):
        print(f"| {name} | {spent:.1f} | {options.count / spent:,.0f} |")


if __name__ == "__main__":
    main()
