"""A trained network in use: from pictures of any size to labels and probabilities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from segjax.data.pictures import Ranges, read_picture
from segjax.errors import SegjaxError
from segjax.inference import memory, tiles
from segjax.inference.predict import (
    labels_of,
    make_predict,
    make_tiled_predict,
    probabilities_of,
    warn_of_fractions,
)
from segjax.training import sharding

_TILE = 1024  # where a picture has to be computed by tiles, and no size is given

Picture = str | Path | np.ndarray | jax.Array


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
    ) -> Any:
        """The label of each pixel.

        Args:
            pictures: one, as a file or an array (H, W, C) of uint8 (float32 with `ranges`); a batch
                (B, H, W, C); or a list of files and arrays, whose sizes may differ.
            tile: compute by tiles of at most so many pixels a side; by default only where the
                memory does not hold the whole.
            gaussian: where windows are averaged (SETR), let their weights fall towards the border.

        Returns:
            uint8 (H, W), class indices; (B, H, W) of a batch; a list of (H, W) of a list.

        Raises:
            SegjaxError: a file cannot be read, or an array is no picture of this network's.
        """

        def label(images: Any) -> np.ndarray:
            logits = self.logits(images, tile=tile, gaussian=gaussian)
            return np.asarray(labels_of(logits, threshold=self.threshold), np.uint8)

        return self._each(pictures, label)

    def probabilities(
        self,
        pictures: Picture | Sequence[Picture],
        *,
        tile: int | None = None,
        gaussian: bool = False,
    ) -> Any:
        """The probability of each class: float32 (H, W, N), (B, H, W, N) or a list of (H, W, N).

        Of a sigmoid, N is 2: background and object. The arguments are those of `predict`.
        """

        def probable(images: Any) -> np.ndarray:
            return np.asarray(probabilities_of(self.logits(images, tile=tile, gaussian=gaussian)))

        return self._each(pictures, probable)

    def logits(self, images: Any, *, tile: int | None = None, gaussian: bool = False) -> Any:
        """The network's own scores, float32 (B, H, W, N), of a batch (B, H, W, C): a `Predict`.

        On the device where they were computed at once, on the host where by tiles.
        """
        if not tile:
            compiled = self._compiled(images.shape, images.dtype)
            try:
                if compiled and memory.fits(compiled):
                    return compiled(self._on_device, images)
            except jax.errors.JaxRuntimeError as error:
                if not memory.exhausted(error):
                    raise
        return self._by_tiles(tile or self._side, gaussian)(self._on_device, images)

    def plan(self, size: tuple[int, int], *, tile: int | None = None) -> tiles.Plan | None:
        """The tiles by which a picture of a size would be computed; None where at once.

        Raises:
            SegjaxError: `tile` is too small for the network.
        """
        if not tile:
            dtype = np.float32 if self.ranges else np.uint8
            compiled = self._compiled((1, *size, self.channels), np.dtype(dtype))
            if compiled and memory.fits(compiled):
                return None
        return tiles.plan(self.model, size, tile or self._side)

    def read(self, picture: Picture, page: int | None = None) -> np.ndarray:
        """A picture (H, W, C) as the network takes it: a file's, or an array that is one.

        Raises:
            SegjaxError: it cannot be read, or has other axes or channels.
        """
        if isinstance(picture, str | Path):
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

    def _each(self, pictures: Any, of: Callable[[Any], Any]) -> Any:
        """What a function of a batch gives for pictures in any form that `predict` takes."""
        if isinstance(pictures, list | tuple):
            return [of(self.read(picture)[None])[0] for picture in pictures]
        if not isinstance(pictures, str | Path) and np.ndim(pictures) == 4:
            return of(np.stack([self.read(picture) for picture in pictures]))
        return of(self.read(pictures)[None])[0]

    @property
    def _side(self) -> int:
        return self.window if self.model.geometry.context is None else _TILE

    @cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.variables)

    @cached_property
    def _whole(self) -> Any:
        return make_predict(self.model, normalise=self.normalise)

    @cached_property
    def _programs(self) -> dict[Any, Any]:
        return {}

    def _compiled(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """The program for pictures of a shape; None where even compiling takes too much memory."""
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
