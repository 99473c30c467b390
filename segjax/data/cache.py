"""Decoded examples kept, so that each is decoded once: in memory, or in a file that is mapped.

A file of their bytes, not ArrayRecord, whose reading costs as much as decoding them does
(benchmarks/input_rate.py).
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segjax import cache_folder
from segjax.data.wrapper import Source
from segjax.errors import SegjaxError

Example = dict[str, Any]


class Kept:
    """A source whose examples come from somewhere else; none may be written to.

    Args:
        source: of the classes and the palette.
        read: index -> example.
    """

    def __init__(self, source: Source, read: Callable[[int], Example]) -> None:
        self.classes, self.palette = source.classes, source.palette
        self._length, self._read = len(source), read
        if hasattr(source, "size_of"):
            self.size_of = source.size_of

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> Example:
        return self._read(range(self._length)[i])


def in_memory(source: Source) -> Kept:
    """Keep every example in memory once it has been read.

    Raises:
        SegjaxError: all, as large as the first, would take more than half of the machine's memory.
    """
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    _demand_room(source, half, "half of the memory", "disk")
    kept: dict[int, Example] = {}

    def read(i: int) -> Example:
        if i not in kept:
            kept[i] = source[i]
            for array in _arrays(kept[i]).values():
                array.flags.writeable = False
        return dict(kept[i])

    return Kept(source, read)


def on_disk(source: Source, track: Callable[[Iterable[Any], str], Iterable[Any]]) -> Kept:
    """Decode all examples into a file, unless an earlier call has, and read them from there.

    It lies in ~/.cache/segjax/decoded (or in $XDG_CACHE_HOME), by a hash of the source's fields and
    of the paths, sizes and times of its files: a file that changes makes another one.

    Args:
        source: with `files`, the paths of all files that its examples are made of.
        track: shows progress: (what, description) -> the same.

    Raises:
        SegjaxError: the source has no files, they do not fit on the disk, or what it raises.
    """
    if not hasattr(source, "files"):
        raise SegjaxError(f'{source} is not made of files; take cache="memory" or "no".')
    stamps = [(str(path), (s := path.stat()).st_size, s.st_mtime_ns) for path in source.files]
    name = hashlib.sha256(repr((source, stamps)).encode()).hexdigest()
    folder = cache_folder("decoded") / name
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder.parent).free
            _demand_room(source, free, f"what is free at {folder.parent}", "memory")
            _write(source, folder, track)
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        content = np.memmap(folder / "examples", np.uint8, "r")
    except (OSError, json.JSONDecodeError) as error:
        raise SegjaxError(
            f"{folder}: cannot keep decoded pictures there: {error}. Make room, delete what is "
            'there, name another place by XDG_CACHE_HOME, or take cache="memory" or "no".'
        ) from error

    def read(i: int) -> Example:
        identity, arrays = index[i]
        return {"id": identity} | {
            name: np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape)
            for name, (dtype, shape, offset) in arrays.items()
        }

    return Kept(source, read)


def _write(source: Source, folder: Path, track: Callable[..., Any]) -> None:
    """Whole or not at all: other processes may be at the same one, or this one be stopped."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        whole, index = Path(unfinished) / folder.name, []
        whole.mkdir()
        with (whole / "examples").open("wb") as file:
            for i in track(range(len(source)), "decoding"):
                example, arrays = source[i], {}
                for name, array in _arrays(example).items():
                    arrays[name] = (array.dtype.str, array.shape, file.tell())
                    file.write(np.ascontiguousarray(array).data)
                index.append((example["id"], arrays))
        (whole / "index.json").write_text(json.dumps(index), encoding="utf-8")
        try:
            whole.rename(folder)
        except OSError:
            if not folder.exists():  # another process was faster
                raise


def _demand_room(source: Source, room: int, where: str, other: str) -> None:
    need = len(source) * sum(array.nbytes for array in _arrays(source[0]).values())
    if need > room:
        raise SegjaxError(
            f"{len(source)} decoded pictures take about {need / 2**30:.1f} GiB, more than {where} "
            f'({room / 2**30:.1f} GiB); take cache="{other}" or "no".'
        )


def _arrays(example: Example) -> dict[str, np.ndarray]:
    return {name: value for name, value in example.items() if isinstance(value, np.ndarray)}
