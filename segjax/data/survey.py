"""What a folder's pictures and masks are like, as far as the plan of a training needs to know it.

The headers of all files, the masks of many and the pictures of some are read; what is wrong with
them an audit tells.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from segjax.data.audit import evenly
from segjax.data.coding import Tally
from segjax.data.folder import Folder
from segjax.data.pictures import IGNORE
from segjax.errors import SegjaxError

_MASKS = 1000  # whose codes are counted, at most
_EXAMPLES = 48  # that are read whole, at most
_TOLD = 5  # errors that one message tells
_LEAST_OBJECT = 4  # pixels; less is a slip of the pen
_CERTAIN = 4.0  # standard errors that a difference must exceed
_UP = 0.05  # of the pixels: so much more of a class above than below


class Look(NamedTuple):
    """Of one example: int64 (C, 256) pixels by value, int64 (256,) by label, and see `Survey`."""

    histogram: np.ndarray
    counts: np.ndarray
    above: np.ndarray
    sides: np.ndarray


@dataclass(frozen=True)
class Survey:
    """What the examples of a folder are like.

    Fields:
        sizes: by split, (height, width) -> pictures.
        mean, deviation: of the pictures' values, of each channel, 0..255.
        shares: (N,) of the valid pixels.
        counts: int64 (examples looked at, N), pixels of each class.
        scale: the side of an object, √ of its pixels, such that half of all objects' pixels are in
            larger ones; None without any. Objects are connected parts of all classes but the
            commonest, or what the masks number.
        upright: whether the shares of the classes differ above and below by more than chance.
        above: the greatest such difference, of the upper half less the lower, and its class.
    """

    sizes: Mapping[str, Mapping[tuple[int, int], int]]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    shares: np.ndarray
    counts: np.ndarray
    scale: float | None
    upright: bool
    above: tuple[float, int]


def tally_masks(sources: Sequence[Folder], *, coloured: bool = False) -> Tally:
    """What the masks store, of all or of many; `coloured` takes those of values by colour too.

    Raises:
        SegjaxError: what is wrong with them, the first few of many.
    """
    tally = Tally()
    for source in sources:
        some = evenly(len(source), _MASKS // len(sources))
        for codes in _all(partial(source.codes_of, coloured=coloured), some):
            tally.add(codes)
    return tally


def are_grey(source: Folder) -> bool:
    """Whether the pictures, of `channels=3`, have three equal channels, of some."""

    def grey(i: int) -> bool:
        _, picture = source.picture_of(i)
        return bool((picture == picture[..., :1]).all())

    return all(_all(grey, evenly(len(source), _EXAMPLES)))


def survey(sources: Mapping[str, Folder]) -> Survey:
    """Look at the splits of a folder; all but the sizes is of the first one, that is trained on.

    Raises:
        SegjaxError: what is wrong with the files, the first few of many.
    """
    sizes = {
        name: Counter(_all(source.size_of, range(len(source)))) for name, source in sources.items()
    }
    source = next(iter(sources.values()))
    looks = _all(lambda i: _look(source, i), evenly(len(source), _EXAMPLES))
    mean, deviation = _moments(np.sum([look.histogram for look in looks], axis=0))
    counts = np.array([look.counts[: len(source.classes)] for look in looks])
    upright, above = _is_upright(np.array([look.above[: len(source.classes)] for look in looks]))
    sides = np.concatenate([look.sides for look in looks])
    return Survey(
        sizes=sizes,
        mean=mean,
        deviation=deviation,
        shares=counts.sum(0) / max(counts.sum(), 1),
        counts=counts,
        scale=_typical(sides) if sides.size else None,
        upright=upright,
        above=above,
    )


def _all(read: Callable[[int], Any], indices: Sequence[int]) -> list[Any]:
    """What `read` gives for each index, by as many threads as there are processors."""

    def one(i: int) -> Any:
        try:
            return read(i)
        except SegjaxError as error:
            return error.with_traceback(None)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(one, indices))
    if broken := [str(one) for one in found if isinstance(one, SegjaxError)]:
        more = [f"… and {len(broken) - _TOLD} more"] if len(broken) > _TOLD else []
        raise SegjaxError("\n".join(broken[:_TOLD] + more))
    return found


def _look(source: Folder, i: int) -> Look:
    example = source[i]
    image, label = example["image"], example["label"]
    channels = [image[..., c].astype(np.uint8).reshape(-1) for c in range(image.shape[-1])]
    middle = label.shape[0] // 2
    upper, lower = _shares(label[:middle]), _shares(label[middle:])
    return Look(
        np.array([np.bincount(channel, minlength=256) for channel in channels]),
        np.bincount(label.reshape(-1), minlength=256),
        upper - lower,
        _sides(example.get("instances"), label),
    )


def _shares(label: np.ndarray) -> np.ndarray:
    """Float (255,): of each class, among the valid pixels."""
    counts = np.bincount(label.reshape(-1), minlength=256)[:IGNORE]
    return counts / max(counts.sum(), 1)


def _sides(instances: np.ndarray | None, label: np.ndarray) -> np.ndarray:
    """√ of the pixels of each object."""
    from scipy import ndimage  # takes a moment to import

    if instances is not None:
        areas = [np.bincount(instances.reshape(-1))[1:]]
    else:
        counts = np.bincount(label.reshape(-1), minlength=256)[:IGNORE]
        areas = [np.zeros(0, np.int64)]
        for value in np.flatnonzero(counts):
            if value != counts.argmax():
                parts, _ = ndimage.label(label == value)
                areas.append(np.bincount(parts.reshape(-1))[1:])
    every = np.concatenate(areas)
    return np.sqrt(every[every >= _LEAST_OBJECT])


def _typical(sides: np.ndarray) -> float:
    """The side above which the objects hold half of all pixels."""
    sides = np.sort(sides)
    area = np.cumsum(sides**2)
    return float(sides[np.searchsorted(area, area[-1] / 2)])


def _is_upright(above: np.ndarray) -> tuple[bool, tuple[float, int]]:
    """Whether the means of (examples, N) differ from 0, and the one that does most."""
    mean, number = above.mean(0), len(above)
    error = above.std(0) / np.sqrt(max(number - 1, 1))
    # Of very few pictures the deviation tells little: they must differ by more.
    certain = np.abs(mean) > np.maximum(_UP * (1 + 4 / number), _CERTAIN * error)
    most = int(np.argmax(np.abs(mean)))
    return bool(certain.any()), (float(mean[most]), most)


def _moments(histogram: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel."""
    values, pixels = np.arange(256), histogram.sum(1, keepdims=True)
    mean = (histogram * values).sum(1) / pixels[:, 0]
    variance = (histogram * (values - mean[:, None]) ** 2).sum(1) / pixels[:, 0]
    return tuple(mean.round(1).tolist()), tuple(np.sqrt(variance).round(1).tolist())
