"""What memory a prediction takes, by the compiler's account, and what there is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

_SHARE = 0.8  # of what is left that may be taken: convolutions have scratch space beside


def whole(predict: Any, variables: Any, image: np.ndarray) -> np.ndarray | None:
    """The label (H, W) of a picture computed at once; None where the memory does not hold that.

    Args:
        predict: of `make_predict`.
        variables: of the network, on the device.
        image: (H, W, C).
    """
    try:
        # What is compiled to be asked is also run, so that nothing is compiled in vain.
        compiled = predict.lower(variables, image[None]).compile()
        if _bytes_of(compiled, image) > _SHARE * left():
            return None
        return np.asarray(compiled(variables, image[None])[0].argmax(-1).astype(np.uint8))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise


def left() -> int:
    """Bytes free on the device that computes; on the host, where it has no memory of its own."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return left_on_host()


def left_on_host() -> int:
    """Bytes that are free to this process, within the limit of its job or container."""
    own = psutil.Process().memory_info().rss
    return min([psutil.virtual_memory().available, *(limit - own for limit in _limits())])


def _bytes_of(compiled: Any, image: np.ndarray) -> int:
    """What a compiled prediction takes beside its arguments, and the label that is made of it."""
    found = compiled.memory_analysis()
    label = 4 * image.shape[0] * image.shape[1]
    return found.temp_size_in_bytes + found.output_size_in_bytes + label


def _limits(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """The limits in bytes of the Linux control groups (v2) around this process."""
    own = Path("/proc/self/cgroup")
    path = own.read_text().strip().rpartition("::/")[2] if own.exists() else ""
    for folder in (root / path, *(root / path).parents):
        file = folder / "memory.max"
        if file.is_file() and (limit := file.read_text().strip()).isdecimal():
            yield int(limit)
