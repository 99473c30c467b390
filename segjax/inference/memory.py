"""What memory a prediction takes, by the compiler's account, and what there is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import psutil

SHARE = 0.8  # of what is left that may be taken: convolutions have scratch space beside


def fits(compiled: Any) -> bool:
    """Whether the memory holds what a compiled prediction takes beside its arguments."""
    found = compiled.memory_analysis()
    return found.temp_size_in_bytes + found.output_size_in_bytes <= SHARE * left()


def exhausted(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether it was memory that was missing."""
    return "RESOURCE_EXHAUSTED" in str(error)


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


def _limits(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """The limits in bytes of the Linux control groups (v2) around this process."""
    own = Path("/proc/self/cgroup")
    path = own.read_text().strip().rpartition("::/")[2] if own.exists() else ""
    for folder in (root / path, *(root / path).parents):
        file = folder / "memory.max"
        if file.is_file() and (limit := file.read_text().strip()).isdecimal():
            yield int(limit)
