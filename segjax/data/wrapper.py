"""Sources around another source, and how the source of the files within them is found."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

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
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The source's, if it has any."""
        return self.source.ranges

    @property
    def values(self) -> tuple[tuple[int, int], ...]:
        """The source's, if it has any."""
        return self.source.values

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


def bare(source: Source) -> Source:
    """The source of files within those that wrap it, of the same examples in the same order."""
    while hasattr(source, "source") and not isinstance(source, Without):
        source = source.source
    return source


def without(source: Source, skipped: tuple[int, ...]) -> Source:
    """A source less some of its examples, left out of the innermost: see `bare`."""
    if source is bare(source):
        return Without(source, skipped)
    return replace(source, source=without(source.source, skipped))
