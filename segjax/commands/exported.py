"""A trained network as files for others: written by the verb `export`, and loaded again.

weights.safetensors  the variables by their paths; network, scaling, classes … in its metadata
labels.jax           pictures to labels, as `segjax.inference.export` makes it
load.py              how both are used with JAX alone
README.md            the model card
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import segjax
from segjax.commands.description import describe, rebuild
from segjax.errors import SegjaxError
from segjax.segmenter import Segmenter
from segjax.weights import files
from segjax.weights.table import fill

WEIGHTS, LABELS, LOADER, CARD = "weights.safetensors", "labels.jax", "load.py", "README.md"
_PARTS = ("model", "normalise", "classes", "palette", "channels", "ranges", "threshold", "window")
_KEY = "segjax"  # of the metadata


def save(path: Path, trained: Segmenter) -> None:
    """Write a segmenter whole to a .safetensors file."""
    parts = {name: describe(getattr(trained, name)) for name in _PARTS}
    told = json.dumps({"segjax": segjax.__version__, **parts}, ensure_ascii=False)
    files.save(path, trained.variables, metadata={_KEY: told})


def load(path: Path) -> Segmenter:
    """The segmenter that `save` has written.

    Raises:
        SegjaxError: there is no such file, it is broken, or it holds no network of segjax.
    """
    told = files.read_metadata(path).get(_KEY)
    if told is None:
        raise SegjaxError(
            f"{path}: holds weights alone. Expected a file of `segjax export`; others fill a "
            "network by `segjax.weights`."
        )
    tensors = files.read(path)
    try:
        parts = {name: json.loads(told)[name] for name in _PARTS}
        for name in _classes(parts):
            if not name.startswith("segjax."):  # a file of weights runs no code of its own
                raise SegjaxError(
                    f"its network is of the class {name}, no part of segjax. Make it yourself, and "
                    "a segjax.Segmenter of it, with the arrays that segjax.weights.read gives."
                )
        rebuilt = {name: rebuild(value) for name, value in parts.items()}
        model, normalise = rebuilt["model"], rebuilt["normalise"]
        side = model.geometry.fit(64)
        images = jnp.zeros((1, side, side, rebuilt["channels"]), jnp.uint8)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), normalise(images)))
        like = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), shapes)
        return Segmenter(variables=fill(like, tensors, files.own(like)), **rebuilt)
    except SegjaxError as error:
        raise SegjaxError(f"{path}: {error}") from error
    except Exception as error:  # of anything, given what the file holds
        raise SegjaxError(
            f"{path}: what it says of its network cannot be used: {error}. It was written by "
            f"another segjax than this, {segjax.__version__}, or is damaged: get it again."
        ) from error


def _classes(parts: Any) -> Iterator[str]:
    """Every class that is named in what `describe` gave."""
    if isinstance(parts, Mapping):
        if "class" in parts:
            yield str(parts["class"])
        parts = list(parts.values())
    if isinstance(parts, list):
        for part in parts:
            yield from _classes(part)
