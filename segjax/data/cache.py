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
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from segjax import cache_folder
from segjax.data.wrapper import Source
from segjax.errors import SegjaxError, SegjaxWarning

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
    of the paths, sizes and times of its files: a file that changes makes another one. What is
    damaged there is told in a warning and made anew: at once, or an example that fails its checksum
    when it is read, and the rest at the next call.

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
        opened = _opened(folder, len(source))
        if opened is None:
            if folder.exists():
                _warn(f"{folder}: the decoded pictures there are damaged; they are made anew.")
                damaged = Path(tempfile.mkdtemp(dir=folder.parent))
                folder.rename(damaged / folder.name)  # whole, for others may be at it too
                shutil.rmtree(damaged)
            folder.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder.parent).free
            _demand_room(source, free, f"what is free at {folder.parent}", "memory")
            _write(source, folder, track)
            opened = _opened(folder, len(source))
        if opened is None:
            raise OSError("what was written there cannot be read again")
        index, content = opened
    except OSError as error:
        raise SegjaxError(
            f"{folder}: cannot keep decoded pictures there: {error}. Make room, delete what is "
            'there, name another place by XDG_CACHE_HOME, or take cache="memory" or "no".'
        ) from error

    def read(i: int) -> Example:
        identity, arrays, checksum = index[i]
        found = {
            name: np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape)
            for name, (dtype, shape, offset) in arrays.items()
        }
        if _checksum(found) != checksum:
            _warn(f"{folder}: damaged; {identity} is decoded anew, and all at the next start.")
            (folder / "index.json").unlink(missing_ok=True)
            return source[i]
        return {"id": identity} | found

    return Kept(source, read)


def _opened(folder: Path, length: int) -> tuple[list[Any], np.ndarray] | None:
    """Index and bytes of so many examples; None where they are not there, or not whole."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        content = np.memmap(folder / "examples", np.uint8, "r")
        ends = [
            offset + np.dtype(dtype).itemsize * math.prod(shape)
            for _, arrays, _ in index
            for dtype, shape, offset in arrays.values()
        ]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (ValueError, TypeError, AttributeError, RecursionError):  # of the JSON, an empty file
        return None
    return (index, content) if len(index) == length and max(ends) == len(content) else None


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    return reduce(lambda crc, name: zlib.crc32(arrays[name].data, crc), sorted(arrays), 0)


def _warn(text: str) -> None:
    warnings.warn(text, SegjaxWarning, stacklevel=3)


def _write(source: Source, folder: Path, track: Callable[..., Any]) -> None:
    """Whole or not at all: other processes may be at the same one, or this one be stopped."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        whole, index = Path(unfinished) / folder.name, []
        whole.mkdir()
        with (whole / "examples").open("wb") as file:
            for i in track(range(len(source)), "decoding"):
                example, arrays = source[i], dict[str, Any]()
                found = {n: np.ascontiguousarray(a) for n, a in _arrays(example).items()}
                for name, array in found.items():
                    arrays[name] = (array.dtype.str, array.shape, file.tell())
                    file.write(array.data)
                index.append((example["id"], arrays, _checksum(found)))
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
