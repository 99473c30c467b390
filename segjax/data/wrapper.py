"""Sources around another source, and how the source of the files within them is found."""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segjax.errors import SegjaxError

Source = Any  # a sequence of {"image", "label", "id"} with classes and palette


@dataclass(frozen=True)
class Wrapper:
    """What a source around another one, of the same examples, tells of it.

    Args:
        source: the other.
    """

    source: Source

    @property
    def classes(self) -> tuple[str, ...]:
        """The source's."""
        return self.source.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The source's."""
        return self.source.palette

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The source's, if it has any."""
        return self.source.ranges

    @property
    def values(self) -> tuple[tuple[int, int], ...]:
        """The source's, if it has any."""
        return self.source.values

    @property
    def files(self) -> list[Path]:
        """The source's, if it has any."""
        return self.source.files

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Without(Wrapper):
    """A source less some of its examples, in the order of the others.

    Args:
        source: of the examples.
        skipped: indices of those left out.
    """

    skipped: tuple[int, ...]

    @property
    def pairs(self) -> list[Any]:
        """Those of the source's pairs of files that are left, if it has any."""
        pairs = self.source.pairs
        return [pairs[i] for i in self._kept]

    @property
    def size_of(self) -> Callable[[int], tuple[int, int]]:
        """Height and width of example i, if the source has the method."""
        size_of = self.source.size_of
        return lambda i: size_of(self._kept[i])

    @cached_property
    def _kept(self) -> list[int]:
        return sorted(set(range(len(self.source))) - set(self.skipped))

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.source[self._kept[i]]


@dataclass(frozen=True)
class Pieces(Wrapper):
    """A source whose large pictures are cut, each piece an example: no canvas need hold a whole.

    A side of n pixels becomes ⌈n / most⌉ pieces without overlap, as equal as can be. A picture is
    decoded anew for each of its pieces.

    Args:
        source: of the pictures, with `size_of`.
        size: the most pixels that a piece has, height and width.
    """

    size: tuple[int, int]

    @property
    def pairs(self) -> list[Any]:
        """For each piece the source's pair of files, if it has any."""
        pairs = self.source.pairs
        return [pairs[i] for i, _ in self._places]

    def size_of(self, i: int) -> tuple[int, int]:
        """Height and width of piece i."""
        record, window = self._places[i]
        if window is None:
            return self.source.size_of(record)
        return window[0].stop - window[0].start, window[1].stop - window[1].start

    @cached_property
    def _places(self) -> list[tuple[int, tuple[slice, slice] | None]]:
        """Of each piece, its picture and window; None of a picture whose size cannot be read."""
        places: list[tuple[int, tuple[slice, slice] | None]] = []
        for i in range(len(self.source)):
            try:
                height, width = self.source.size_of(i)
            except SegjaxError:
                places.append((i, None))  # to read it tells why
                continue
            rows, columns = cuts(height, self.size[0]), cuts(width, self.size[1])
            places += [(i, (row, column)) for row in rows for column in columns]
        return places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> dict[str, Any]:
        record, window = self._places[i]
        example = self.source[record]
        if window is None or self._whole(window, example["label"].shape):
            return example
        cut = {
            name: np.ascontiguousarray(value[window])
            for name, value in example.items()
            if isinstance(value, np.ndarray)
        }
        return example | cut | {"id": f"{example['id']}@{window[0].start},{window[1].start}"}

    @staticmethod
    def _whole(window: tuple[slice, slice], size: tuple[int, ...]) -> bool:
        return (window[0].stop, window[1].stop) == size and not window[0].start + window[1].start


def cuts(length: int, most: int) -> list[slice]:
    """As few equal parts of a length as have at most so many pixels each."""
    number = -(-length // most)
    edges = [round(i * length / number) for i in range(number + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def bare(source: Source) -> Source:
    """The source of files within those that wrap it, of the same examples in the same order."""
    while hasattr(source, "source") and not isinstance(source, Without | Pieces):
        source = source.source
    return source


def listing(source: Source) -> dict[str, Any]:
    """Of which examples a source is: how many and, where they are pairs of files, whose names.

    Returns:
        `{"pictures": their number, "names": a digest of their ids in order, or None}`
    """
    pairs = getattr(bare(source), "pairs", None)
    if pairs is None:
        return {"pictures": len(source), "names": None}
    ids = "\n".join(pair.id for pair in pairs).encode(errors="surrogateescape")
    return {"pictures": len(pairs), "names": hashlib.sha256(ids).hexdigest()[:16]}


def without(source: Source, skipped: tuple[int, ...]) -> Source:
    """A source less some of its examples, left out of the innermost: see `bare`."""
    if source is bare(source):
        return Without(source, skipped)
    return replace(source, source=without(source.source, skipped))
