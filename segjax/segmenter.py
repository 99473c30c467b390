"""A trained network in use: from pictures of any size to labels and probabilities."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from segjax.data.pictures import Ranges, read_picture
from segjax.data.rows import open_rows, size_of
from segjax.errors import SegjaxError
from segjax.inference import memory, tiles
from segjax.inference.predict import (
    Predict,
    labels_of,
    make_forward,
    make_predict,
    make_tiled_predict,
    probabilities_of,
    warn_of_fractions,
)
from segjax.inference.views import compose
from segjax.training import sharding

_INEXACT = (
    "nearly the logits of the whole picture, for each tile is seen by itself in sizes, windows or "
    "networks whose pixels do not meet those of the whole"
)
_LARGE = 2**26  # pixels, 8192×8192, that are held at once; larger pictures go strip by strip
_TILE = 1024  # where a picture has to be computed by tiles, and no size is given

Picture = str | Path | np.ndarray | jax.Array
View = Callable[[Predict], Predict]


@dataclass(frozen=True, eq=False, kw_only=True)
class Segmenter:
    """A network with its variables, and all that lies between a picture's file and its labels.

    `segjax.load` makes one of a run; of variables of your own it is made as any dataclass. Each
    shape of pictures compiles once.

    Args:
        model: a network of `segjax.models`, or one that keeps to their contract.
        variables: what its `apply` takes.
        normalise: the scaling that it was trained with, uint8 (B, H, W, C) -> float32.
        classes: names; two for a network of one channel, which is a sigmoid.
        palette: a colour (red, green, blue) for each.
        channels: of a picture: 1 grey, 3 RGB, 4 RGBA; with `ranges` any number.
        ranges: (low, high) of the stored values of files, as `segjax.data.Folder` takes them.
        threshold: probability in 0–1 above which a sigmoid's pixel is of the second class.
        window: side of the windows of a network that has no exact tiles, best that of training.

    Raises:
        SegjaxError: the network has not a channel for each class.
    """

    model: Any
    variables: Mapping[str, Any]
    normalise: Callable[[jax.Array], jax.Array]
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    channels: int = 3
    ranges: Ranges = ()
    threshold: float = 0.5
    window: int = _TILE

    def __post_init__(self) -> None:
        if max(self.model.num_classes, 2) != len(self.classes):
            raise SegjaxError(
                f"The network has {self.model.num_classes} classes, but {len(self.classes)} are "
                f"named: {', '.join(self.classes)}."
            )
        if not 0 < self.threshold < 1:
            raise SegjaxError(f"threshold is {self.threshold}; expected a probability in 0–1.")

    def predict(
        self,
        pictures: Picture | Sequence[Picture],
        *,
        tile: int | None = None,
        gaussian: bool = False,
        views: Sequence[View] = (),
    ) -> Any:
        """The label of each pixel.

        Args:
            pictures: one, as a file or an array (H, W, C) of uint8 (float32 with `ranges`); a batch
                (B, H, W, C); or a list of files and arrays, whose sizes may differ.
            tile: compute by tiles of at most so many pixels a side; by default only where the
                memory does not hold the whole. What the host does not hold goes by `strips`.
            gaussian: where windows are averaged (SETR), let their weights fall towards the border.
            views: ways to see a picture, of `segjax.inference.views`, the outermost first.

        Returns:
            uint8 (H, W), class indices; (B, H, W) of a batch; a list of (H, W) of a list.

        Raises:
            SegjaxError: a file cannot be read, or an array is no picture of this network's.
        """

        ways: Any = {"tile": tile, "gaussian": gaussian, "views": views}

        def by_strips(read: Callable[[int, int], np.ndarray], size: tuple[int, int]) -> np.ndarray:
            return np.concatenate([strip for _, strip in self.strips(read, size, **ways)])

        def label(images: Any) -> np.ndarray:
            size = images.shape[1:3]
            in_parts = tile is not None and self.by_strips(size, tile=tile, views=views)
            if self.holds(size, views=views) and not in_parts:
                return self.labels_of(self.logits(images, **ways))
            return np.stack([by_strips(partial(_rows, image), size) for image in images])

        def label_file(path: Path) -> np.ndarray:
            if self.holds(size_of(path, self.channels, self.ranges), views=views):
                return label(self.read(path)[None])[0]
            with open_rows(path, self.channels, self.ranges) as rows:
                return by_strips(rows.read, rows.size)

        return self._each(pictures, label, label_file)

    def probabilities(
        self,
        pictures: Picture | Sequence[Picture],
        *,
        tile: int | None = None,
        gaussian: bool = False,
        views: Sequence[View] = (),
    ) -> Any:
        """The probability of each class: float32 (H, W, N), (B, H, W, N) or a list of (H, W, N).

        Of a sigmoid, N is 2: background and object. The arguments are those of `predict`.
        """

        def probable(images: Any) -> np.ndarray:
            logits = self.logits(images, tile=tile, gaussian=gaussian, views=views)
            return np.asarray(probabilities_of(logits))

        return self._each(pictures, probable)

    def logits(
        self,
        images: Any,
        *,
        tile: int | None = None,
        gaussian: bool = False,
        views: Sequence[View] = (),
    ) -> Any:
        """The network's own scores, float32 (B, H, W, N), of a batch (B, H, W, C): a `Predict`.

        Of views, what they make of them. On the device where they were computed at once, on the
        host where by tiles.
        """
        predict = partial(self._logits, tile=tile, gaussian=gaussian)
        if not views:
            return predict(images)
        # Completed before it is turned, so that all views meet the same pixels at its borders, and
        # the same as tiles do.
        height, width = images.shape[1:3]
        beyond = [(0, self._complete(side) - side) for side in (height, width)]
        xp = images.__array_namespace__()
        completed = xp.pad(images, ((0, 0), *beyond, (0, 0)), mode="reflect")
        return compose(views, predict)(completed)[:, :height, :width]

    def strips(
        self,
        read: Callable[[int, int], np.ndarray],
        size: tuple[int, int],
        *,
        of: Callable[[Any], Any] | None = None,
        tile: int | None = None,
        gaussian: bool = False,
        views: Sequence[View] = (),
        start: int = 0,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The labels of a picture of any size, a strip of rows after the other.

        The host holds the rows under one row of tiles, never the picture.

        Args:
            read: (first, last) -> these rows of the picture, (last - first, W, C), as `read` gives
                pictures.
            size: height and width of the picture.
            of: logits (…, N) -> what is given of each pixel; by default its label, uint8.
            tile: greatest side of a tile; by default 1024, or `window` where those are averaged.
            gaussian: where windows are averaged (SETR), let their weights fall towards the border.
            views: ways to see each tile. Flips and rotations give what they give of the whole
                picture; of others, `plan_strips` tells.
            start: the first row that is wanted.

        Yields:
            The first row of a strip, and what is given of it, (rows, W, …): `start` to the end.

        Raises:
            SegjaxError: as `plan_strips`, or what `read` raises.
        """
        plan = self.plan_strips(size, tile=tile, views=views)
        put = partial(sharding.put, mesh=sharding.make_mesh(jax.local_devices()))
        # Views are given whole pictures and give whole ones; alone, a tile's margin may be lost.
        network = self._whole if views else self._forward
        forward = compose(views, lambda images: network(self._on_device, put(images)))
        for first, strip in tiles.strips(
            forward,
            lambda first, last: read(first, last)[None],
            plan,
            batch_size=jax.local_device_count(),
            of=of or self.labels_unmoved,
            gaussian=gaussian,
            start=start,
        ):
            yield first, strip[0]

    def labels_of(self, logits: Any) -> np.ndarray:
        """The class of each pixel of logits (…, N) of this network: uint8 (…)."""
        return np.asarray(self.labels_unmoved(logits))

    def labels_unmoved(self, logits: Any) -> Any:
        """`labels_of`, left where the logits lie: on a device, nobody has waited for them yet."""
        return labels_of(logits, threshold=self.threshold).astype(np.uint8)

    def holds(self, size: tuple[int, int], *, views: Sequence[View] = ()) -> bool:
        """Whether the host holds a picture of a size with its logits: at most 67 megapixels."""
        logits = self.model.num_classes * (2 if views else 1)
        bytes_each = 4 * self.channels + 4 * logits + 8  # float32, and int64 of their argmax
        pixels = math.prod(size)
        return pixels <= _LARGE and pixels * bytes_each <= memory.left_on_host()

    def plan(self, size: tuple[int, int], *, tile: int | None = None) -> tiles.Plan | None:
        """The tiles by which a picture of a size would be computed; None where at once.

        Raises:
            SegjaxError: `tile` is too small for the network.
        """
        if tile is None:
            dtype = np.float32 if self.ranges else np.uint8
            compiled = self._compiled((1, *size, self.channels), np.dtype(dtype))
            if compiled and memory.fits(compiled):
                return None
        return tiles.plan(self.model, size, self._side(tile))

    def by_strips(
        self, size: tuple[int, int], *, tile: int | None = None, views: Sequence[View] = ()
    ) -> bool:
        """Whether `strips` gives just the labels of all `logits` by tiles, for less memory."""
        if not views:
            return True
        try:
            plan = self.plan_strips(size, tile=tile, views=views)
        except SegjaxError:  # the tile is too small for what the views see around it, or none tells
            return False
        return plan.exact and not plan.inexact

    def plan_strips(
        self, size: tuple[int, int], *, tile: int | None = None, views: Sequence[View] = ()
    ) -> tiles.Plan:
        """The tiles of `strips`, with a margin for what the views see.

        Raises:
            SegjaxError: `tile` is too small, or a view is no `segjax.inference.views.View`.
        """
        geometry = self.model.geometry
        if views:  # which are given whole tiles, as `_whole` takes them
            least = geometry.minimum - 2 * max(geometry.margin, 0)
            least += -(-max(1 - least, 0) // geometry.step) * geometry.step
            geometry = geometry._replace(minimum=least, margin=0)
        view: Any
        exact = True
        for view in reversed(views):
            if not hasattr(view, "around"):
                raise SegjaxError(
                    f"The view {view!r} does not tell how far it sees, so it cannot see a picture "
                    "tile by tile. Use views of segjax.inference.views, or give it `around` and "
                    "`exact` as its View has them."
                )
            geometry, exact = view.around(geometry), exact and view.exact
        plan = tiles.plan(SimpleNamespace(geometry=geometry), size, self._side(tile))
        return plan._replace(inexact=_INEXACT) if plan.exact and not exact else plan

    def read(self, picture: Picture, page: int | None = None) -> np.ndarray:
        """A picture (H, W, C) as the network takes it: a file's, also `.npy`, or an array.

        Raises:
            SegjaxError: it cannot be read, or has other axes or channels.
        """
        if isinstance(picture, str | Path):
            if Path(picture).suffix == ".npy":
                with open_rows(Path(picture), self.channels, self.ranges) as rows:
                    return rows.read(0, rows.size[0])
            return read_picture(Path(picture), self.channels, self.ranges, page)
        image = np.asarray(picture)
        if image.ndim == 2 and self.channels == 1:
            image = image[..., None]
        if image.ndim != 3 or image.shape[-1] != self.channels or 0 in image.shape:
            raise SegjaxError(
                f"A picture is {np.shape(picture)}; expected (H, W, {self.channels}), a batch (B, "
                f"H, W, {self.channels}), or a list of pictures."
            )
        if image.dtype == np.uint8 or image.dtype.kind == "f":
            warn_of_fractions(image)
            return image if image.dtype == np.uint8 else image.astype(np.float32)
        raise SegjaxError(
            f"A picture is of {image.dtype}; expected uint8, or floats in 0–255 where the network "
            "was trained on them."
        )

    def _each(
        self,
        pictures: Any,
        of: Callable[[Any], Any],
        of_file: Callable[[Path], Any] | None = None,
    ) -> Any:
        """What a function of a batch gives for pictures in any form that `predict` takes."""

        def one(picture: Picture) -> Any:
            if of_file and isinstance(picture, str | Path):
                return of_file(Path(picture))
            return of(self.read(picture)[None])[0]

        if isinstance(pictures, list | tuple):
            return [one(picture) for picture in pictures]
        if not isinstance(pictures, str | Path) and np.ndim(pictures) == 4:
            return of(np.stack([self.read(picture) for picture in pictures]))
        return one(pictures)

    def _logits(self, images: Any, *, tile: int | None, gaussian: bool) -> Any:
        if tile is None:
            compiled = self._compiled(images.shape, images.dtype)
            try:
                if compiled and memory.fits(compiled):
                    return compiled(self._on_device, images)
            except jax.errors.JaxRuntimeError as error:
                if not memory.exhausted(error):
                    raise
        return self._by_tiles(self._side(tile), gaussian)(self._on_device, images)

    def _complete(self, side: int) -> int:
        """The next side from which the network takes every pixel, and gives one for each."""
        geometry = self.model.geometry
        return geometry.fit(side) - 2 * max(geometry.margin, 0)

    def _side(self, tile: int | None) -> int:
        """Of tiles: what is asked for, else the network's own."""
        own = self.window if self.model.geometry.context is None else _TILE
        return own if tile is None else tile

    @cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.variables)

    @cached_property
    def _whole(self) -> Any:
        return make_predict(self.model, normalise=self.normalise)

    @cached_property
    def _forward(self) -> Any:
        return make_forward(self.model, normalise=self.normalise)

    @cached_property
    def _programs(self) -> dict[Any, Any]:
        return {}

    def _compiled(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """The program for pictures of a shape; None where even compiling takes too much memory."""
        if 4 * math.prod(shape) > memory.left():  # hopeless, and compiling it takes long
            return None
        if (shape, dtype) not in self._programs:
            images = jax.ShapeDtypeStruct(shape, dtype)
            try:
                program = self._whole.lower(self._on_device, images).compile()
            except jax.errors.JaxRuntimeError as error:
                if not memory.exhausted(error):
                    raise
                program = None
            self._programs[shape, dtype] = program
        return self._programs[shape, dtype]

    def _by_tiles(self, tile: int, gaussian: bool) -> Any:
        if (tile, gaussian) not in self._programs:
            put = partial(sharding.put, mesh=sharding.make_mesh(jax.local_devices()))
            self._programs[tile, gaussian] = make_tiled_predict(
                self.model,
                normalise=self.normalise,
                tile=tile,
                batch_size=jax.local_device_count(),
                gaussian=gaussian,
                put=put,
            )
        return self._programs[tile, gaussian]


def _rows(image: np.ndarray, first: int, last: int) -> np.ndarray:
    return image[first:last]
