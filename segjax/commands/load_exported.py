"""Label pictures with the network exported beside this file, by JAX alone, without segjax.

    pip install jax flatbuffers safetensors pillow
    python load.py picture.png labels.png

The labels come as a grey PNG of class indices. In a program: `label = load()`, then `label(images)`
of pictures (B, H, W, C) gives labels (B, H, W); each new shape compiles once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from PIL import Image
from safetensors.numpy import load_file

HERE = Path(__file__).parent
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def load(folder: Path = HERE) -> Callable[[Any], np.ndarray]:
    """The function from pictures (B, H, W, C) to class indices, uint8 (B, H, W)."""
    return bound(read(folder), folder)


def read(folder: Path) -> export.Exported:
    """The program, whose last argument are the pictures."""
    return export.deserialize(bytearray((folder / "labels.jax").read_bytes()))


def bound(exported: export.Exported, folder: Path) -> Callable[[Any], np.ndarray]:
    """The program with the weights beside it."""
    weights = jax.device_put(load_file(folder / "weights.safetensors"))
    compiled = jax.jit(exported.call)
    return lambda images: np.asarray(compiled(weights, images))


def main(picture: str, labels: str) -> None:
    """Label one file; of a picture that is not of 8 bits, scale it yourself and call `load()`."""
    if Path(labels).exists() and Path(labels).samefile(picture):
        sys.exit(f"{picture}: its labels would be written over it. Name another file.")
    exported = read(HERE)
    *_, images = exported.in_avals
    pixels = np.asarray(Image.open(picture).convert(MODES[images.shape[-1]]), images.dtype)
    pixels = pixels.reshape(1, *pixels.shape[:2], images.shape[-1])
    Image.fromarray(bound(exported, HERE)(pixels)[0]).save(labels)


if __name__ == "__main__":
    main(*sys.argv[1:])
