"""What memory and time does a picture of 20,000 × 20,000 pixels take, and is its label right?

    python benchmarks/large_picture.py
    python benchmarks/large_picture.py --side 3000 --windows 3    # does it work?

Prints a Markdown table. The picture is a tiled, deflated BigTIFF of structured noise, 1.2 GB of
pixels, in a temporary folder; the network a small U-Net of random weights, whose label has borders
everywhere. It is labelled as `predict` does, in a process of its own that is killed after a third
of the rows; another goes on. The peak is the resident set of the larger one as the system counts
it, Python, JAX and the compiler included. At last windows of the label are compared with what the
network gives for their surroundings alone, cut from the picture at other places than the tiles.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tifffile

import segjax
from segjax.commands.strips import label_by_strips
from segjax.data import Normalise
from segjax.data.rows import open_rows
from segjax.models import UNet

TILE = 512  # of the file
CLASSES = ("a", "b", "c")
PALETTE = ((0, 0, 0), (200, 60, 60), (60, 60, 200))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=20_000, help="of the picture, pixels")
    parser.add_argument("--tile", type=int, default=512, help="side of the network's input")
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8, 16], help="of the U-Net")
    parser.add_argument("--windows", type=int, default=12, help="that are compared")
    parser.add_argument("--label", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.label:
        label(options)
        return

    with tempfile.TemporaryDirectory() as home:
        picture, target = Path(home) / "picture.tif", Path(home) / "out/picture.tif"
        draw(picture, options.side)
        first, going_on = labelled(options, picture)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # KiB on Linux
        found, other = compare(options, picture, target)
        shares = ", ".join(f"{share:.0%}" for share in found / found.sum())
        seconds = first + going_on
        print(f"| {options.side} × {options.side} pixels | |\n|---|---:|")
        print(f"| network, tile | U-Net {options.widths}, {options.tile} |")
        print(f"| picture and label, as stored | {size(picture)}, {size(target)} GiB |")
        print(f"| time, until killed and after | {first / 60:.1f} + {going_on / 60:.1f} min |")
        print(f"| pixels a second | {options.side**2 / seconds / 1e6:.2f} million |")
        print(f"| peak memory | {peak:.2f} GiB |")
        print(f"| pixels compared, in {options.windows} windows | {found.sum():,} |")
        print(f"| of classes | {shares} |")
        print(f"| of another class than computed directly | {other:,} |")
        print(f"\n{processor()}, {os.cpu_count()} cores, jax {jax.__version__}, {jax.devices()[0]}")


def draw(path: Path, side: int) -> None:
    """Noise of three octaves, so that pooling has something to see at each level."""
    rng = np.random.default_rng(0)

    across = -(-side // TILE)

    def tiles() -> Iterator[np.ndarray]:
        for _ in range(across * across):
            pixels = np.zeros((TILE, TILE, 3))
            for size in (4, 32, 256):
                coarse = rng.integers(0, 86, (TILE // size, TILE // size, 3))
                pixels += np.kron(coarse, np.ones((size, size, 1)))
            yield pixels.astype(np.uint8)

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        shape = (side, side, 3)
        options = {"tile": (TILE, TILE), "compression": "zlib", "photometric": "rgb"}
        file.write(tiles(), shape=shape, dtype=np.uint8, **options)


def network(options: argparse.Namespace) -> segjax.Segmenter:
    model = UNet(len(CLASSES), widths=tuple(options.widths))
    side = model.geometry.minimum
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, side, side, 3)))
    normalise = Normalise(mean=(127.0,) * 3, deviation=(40.0,) * 3)
    return segjax.Segmenter(
        model=model, variables=variables, normalise=normalise, classes=CLASSES, palette=PALETTE
    )


def label(options: argparse.Namespace) -> None:
    """What `predict` does to a picture of this size."""
    with open_rows(options.label) as rows:
        target = options.label.parent / "out/picture"
        label_by_strips(network(options), rows, target, identity={}, tile=options.tile)


def labelled(options: argparse.Namespace, picture: Path) -> tuple[float, float]:
    """Label the picture in two processes, the first of which is killed; seconds of each."""
    command = [sys.executable, __file__, "--label", str(picture), "--tile", str(options.tile)]
    command += ["--widths", *map(str, options.widths)]
    journal = picture.parent / "out/picture.tif.journal"
    began = time.perf_counter()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            if journal.exists() and json.loads(journal.read_text())["rows"] > options.side / 3:
                process.kill()
                break
            time.sleep(0.2)
    killed = time.perf_counter()
    subprocess.run(command, check=True)
    return killed - began, time.perf_counter() - killed


def compare(options: argparse.Namespace, picture: Path, target: Path) -> tuple[np.ndarray, int]:
    """How many pixels of each class were compared, and how many of all are another class."""
    made, rng = network(options), np.random.default_rng(1)
    geometry, side = made.model.geometry, options.side
    around = -(-geometry.halo // geometry.stride) * geometry.stride
    window = min(256, side // 4)
    found, other = np.zeros(len(CLASSES), int), 0
    with open_rows(picture) as rows, open_rows(target, 1, ((0, 255),)) as labels:
        for i in range(options.windows):
            # The first lie at the picture's corners, where it is mirrored.
            corner = [(0, 0), (0, side - window), (side - window, 0), (side - window,) * 2]
            place = corner[i] if i < 4 else rng.integers(0, side - window, 2).tolist()
            cuts = []
            for at in place:
                first = max(at - around, 0) // geometry.stride * geometry.stride
                cuts.append((first, min(at + window + 2 * around, side)))
            (a, z), (c, d) = cuts
            direct = made.predict(rows.read(a, z)[:, c:d])
            y, x = place[0] - a, place[1] - c
            got = labels.read(place[0], place[0] + window)[:, place[1] : place[1] + window, 0]
            want = direct[y : y + window, x : x + window]
            found += np.bincount(want.ravel(), minlength=len(CLASSES))
            other += int((got != want).sum())
    return found, other


def size(path: Path) -> str:
    return f"{path.stat().st_size / 2**30:.3f}"


def processor() -> str:
    """The processor's own name, of Linux."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    main()
