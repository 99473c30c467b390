"""A picture seen in several ways, and the mean of what the network says to each.

A view is a function of a `Predict` that returns one, and views compose: `flip(scales(0.5, 1)(…))`.
What is averaged are probabilities, as SETR (Zheng et al. 2021, in mmsegmentation) does over ratios
and flips, and U-Net (Ronneberger et al. 2015) over 7 rotated versions, which it does not name; FCN
takes the picture as it is. What is given are the logarithms of the mean, of one channel its
log-odds: `labels_of` and `probabilities_of` take them as they take logits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from segjax.errors import SegjaxError
from segjax.inference import tiles

Predict = Callable[[Any], Any]  # images (B, H, W, C) -> logits (B, H, W, N), of JAX or NumPy


class View(Protocol):
    """A function of a predict function; with two facts more, it can be computed tile by tile.

    exact: whether tiles then give what the whole picture would.
    around: the geometry of the network -> that of what the view makes of it, for `tiles.plan`.
    """

    @property
    def exact(self) -> bool: ...
    def __call__(self, predict: Predict) -> Predict: ...
    def around(self, geometry: Any) -> Any: ...


@dataclass(frozen=True)
class Turned:
    """The view from several sides: `flip` and `rotations` are two.

    Args:
        quarters: turns, each by so many times 90° anticlockwise.
        mirror: each turned picture also mirrored, left to right.
    """

    quarters: tuple[int, ...] = (0,)
    mirror: bool = False
    exact = True

    def __call__(self, predict: Predict) -> Predict:
        """The mean over what is seen from each side, turned back."""

        def turned(quarters: int, step: int, images: Any) -> Any:
            logits = predict(_turn(images[:, :, ::step], quarters))
            return _turn(logits, -quarters)[:, :, ::step]

        steps = (1, -1) if self.mirror else (1,)
        return ensemble([partial(turned, q, step) for q in self.quarters for step in steps])

    def around(self, geometry: Any) -> Any:
        """To any side a pixel sees no farther than the halo."""
        if geometry.context is None:
            return geometry
        return geometry._replace(context=(geometry.halo, geometry.halo))


flip = Turned(mirror=True)
rotations = Turned(quarters=(0, 1, 2, 3))


@dataclass(frozen=True)
class Scaled:
    """The view in several sizes: `scales`.

    Args:
        ratios: of the sides that the network sees to those of the picture.

    Raises:
        SegjaxError: there is none, or one that is not above 0 and at most 8.
    """

    ratios: tuple[float, ...]
    exact = False  # a tile is sampled anew from its own border on

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio <= 8 for ratio in self.ratios):
            raise SegjaxError(
                f"scales: got {self.ratios}; expected ratios above 0 and up to 8, such as 0.5."
            )

    def __call__(self, predict: Predict) -> Predict:
        """The mean over the sizes; logits are brought back to the picture's before the softmax."""

        def scaled(ratio: float, images: Any) -> Any:
            height, width = images.shape[1:3]
            sides = [max(math.floor(side * ratio + 0.5), 1) for side in (height, width)]
            seen = resize(images, *sides)
            if images.dtype == np.uint8:
                seen = seen.round().astype(np.uint8)
            return resize(predict(seen), height, width)

        return ensemble([partial(scaled, ratio) for ratio in self.ratios])

    def around(self, geometry: Any) -> Any:
        """In a picture made smaller a pixel sees farther."""
        if geometry.context is None:
            return geometry
        reach = math.ceil(geometry.halo / min(1, *self.ratios)) + 2
        return geometry._replace(halo=reach, context=(reach, reach))


def scales(*ratios: float) -> Scaled:
    """The view in several sizes, such as SETR's: 0.5, 0.75, 1, 1.25, 1.5 and 1.75.

    Resized bilinearly, as mmsegmentation does, to whole pixels.

    Raises:
        SegjaxError: there is none, or one that is not above 0 and at most 8.
    """
    return Scaled(ratios)


@dataclass(frozen=True)
class Sliding:
    """The view by windows of one side, whose logits are averaged where they overlap.

    The sliding window of SETR's test, moved by two thirds of its side, for any network. Of one that
    sees the whole picture, `tile=side` is the same.

    Args:
        side: of a window, in pixels; training's crop serves best.
    """

    side: int
    exact = False

    def __call__(self, predict: Predict) -> Predict:
        """The mean of the logits of the windows, on the host."""

        def slid(images: Any) -> Any:
            images = np.asarray(images)
            any_size = SimpleNamespace(
                step=1, minimum=1, stride=1, context=None, fit=lambda size: size
            )
            network = SimpleNamespace(geometry=any_size)
            plan = tiles.plan(network, images.shape[1:3], self.side)
            return tiles.stitch(predict, images, plan, batch_size=1)

        return slid

    def around(self, geometry: Any) -> Any:
        """What a pixel sees depends on the windows that it lies in, so on the whole picture."""
        return geometry._replace(halo=None, context=None)


@dataclass(frozen=True, eq=False)
class With:
    """Further networks beside this one: an `ensemble` as a view.

    Args:
        predicts: of the others.
        geometries: of all, this one's too.
    """

    predicts: Sequence[Predict]
    geometries: Sequence[Any]

    @property
    def exact(self) -> bool:
        """Whether all take the same sides, so that they complete a picture alike."""
        return len({(g.step, g.stride, g.minimum, g.margin) for g in self.geometries}) == 1

    def __call__(self, predict: Predict) -> Predict:
        """The mean over all networks."""
        return ensemble([predict, *self.predicts])

    def around(self, geometry: Any) -> Any:
        """Tiles that serve all of them."""
        every = [geometry, *self.geometries]
        if any(g.halo is None for g in every):
            return geometry._replace(halo=None, context=None)
        reach = max(g.halo for g in every)
        return geometry._replace(
            step=math.lcm(*(g.step for g in every)),
            stride=math.lcm(*(g.stride for g in every)),
            halo=reach,
            context=(reach, reach),
        )


def ensemble(predicts: Sequence[Predict]) -> Predict:
    """The mean of what several predict functions say to the same pictures.

    log p̄ with p̄ = 1/n Σ softmax(zᵢ); of one channel log(p̄ / (1 - p̄)) with p̄ = 1/n Σ σ(zᵢ).

    Args:
        predicts: each gives logits (B, H, W, N) of the same shape.

    Returns:
        images -> (B, H, W, N) float32; of a single function, that function.
    """
    if len(predicts) == 1:
        return predicts[0]

    def mean(images: Any) -> Any:
        total: Any = None
        for predict in predicts:
            logits = predict(images)
            channels = logits.shape[-1]
            given = _log_probabilities(logits)
            xp = given.__array_namespace__()
            total = given if total is None else xp.logaddexp(total, given)
        if channels == 1:  # the number of functions cancels
            return total[..., 1:] - total[..., :1]
        return total - np.float32(math.log(len(predicts)))

    return mean


def compose(views: Sequence[Callable[[Predict], Predict]], predict: Predict) -> Predict:
    """A predict function seen through all views, the first of them outermost."""
    return reduce(lambda inner, view: view(inner), reversed(views), predict)


def parse(text: str) -> tuple[Any, ...]:
    """The views that a line names, `flip,rotations,scales=0.5:1.75`, the outermost first.

    Scales come last, and with them windows, for it is logits that are resized or averaged there.

    Args:
        text: of `flip`, `rotations`, `scales=LOW:HIGH` in steps of 0.25 or `scales=LOW:HIGH:STEP`,
            and `slide=SIDE`, separated by commas.

    Raises:
        SegjaxError: a name or number is wrong; names what there is.
    """
    found: dict[str, Any] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, _, numbers = word.partition("=")
        try:
            if word in ("flip", "rotations"):
                found[name] = {"flip": flip, "rotations": rotations}[name]
            elif name == "scales":
                found[name] = scales(*_ratios(*map(float, numbers.split(":"))))
            elif name == "slide":
                found[name] = Sliding(int(numbers))
            else:
                raise ValueError
        except (ValueError, TypeError):
            raise SegjaxError(
                f"views: {word!r} is none. There are flip, rotations, scales=LOW:HIGH such as "
                "scales=0.5:1.75, scales=LOW:HIGH:STEP, and slide=SIDE, separated by commas."
            ) from None
    order = ("flip", "rotations", "scales", "slide")
    return tuple(found[name] for name in order if name in found)


def resize(x: Any, height: int, width: int) -> Any:
    """Bilinear, without antialiasing, corners not aligned: (B, H, W, N) -> (B, height, width, N).

    On the host of an array of NumPy, on the device of one of JAX; float32 but for the same size.
    """
    xp = x.__array_namespace__()
    for axis, size in ((1, height), (2, width)):
        before = x.shape[axis]
        if size == before:
            continue
        at = np.clip((np.arange(size) + 0.5) * (before / size) - 0.5, 0, before - 1)
        low = at.astype(int)
        share = np.expand_dims((at - low).astype(np.float32), (1, 2) if axis == 1 else 1)
        high = np.minimum(low + 1, before - 1)
        x = xp.take(x, low, axis) * (1 - share) + xp.take(x, high, axis) * share
    return x


def _ratios(low: float, high: float | None = None, step: float = 0.25) -> list[float]:
    """From low to high, both included."""
    if high is None:
        return [low]
    if not (step > 0 and low <= high < math.inf):
        raise ValueError
    return [low + i * step for i in range(math.floor((high - low) / step + 1e-6) + 1)]


def _turn(x: Any, quarters: int) -> Any:
    return x.__array_namespace__().rot90(x, quarters, (1, 2)) if quarters else x


def _log_probabilities(logits: Any) -> Any:
    """The logarithm of the softmax, of one channel of 1 - σ and σ, where the logits lie."""
    xp = logits.__array_namespace__()
    logits = logits.astype(np.float32)
    if logits.shape[-1] == 1:
        logits = xp.concatenate([xp.zeros_like(logits), logits], -1)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - xp.log(xp.exp(logits).sum(-1, keepdims=True))
