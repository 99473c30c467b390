"""Waiting pictures, gathered into batches for one worker thread."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Label = Callable[[np.ndarray], np.ndarray]  # pictures (B, H, W, C) -> labels (B, H, W)


class _Job(NamedTuple):
    image: np.ndarray  # (H, W, C)
    padded: tuple[int, int]  # to which its height and width are mirrored
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[np.ndarray]"


class Batches:
    """Labels pictures one at a time for many, and several at a time for the device.

    What waits in front decides the shape; all that wait with the same padded shape go along. So
    that few shapes are compiled, sides are mirrored up to a multiple of `bucket`, and a batch is
    filled up to 1, 2, 4 … pictures; `shapes` counts what was asked for.

    Args:
        make: a fresh function from batches to labels. After `most` shapes another one is made, so
            that their compiled programs do not pile up.
        size: greatest number of pictures a batch.
        pixels: greatest number of pixels a batch, but for one picture alone.
        bucket: of the sides, in pixels.
        most: shapes.
    """

    def __init__(
        self, make: Callable[[], Label], *, size: int, pixels: int, bucket: int, most: int = 64
    ) -> None:
        self._make, self._size, self._pixels, self._bucket = make, size, pixels, bucket
        self._most, self._label = most, make()
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self.shapes: set[tuple[int, ...]] = set()
        self.done = self.pictures = 0
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the worker is at work."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many pictures wait."""
        return len(self._waiting)

    async def label(self, image: np.ndarray) -> np.ndarray:
        """The labels (H, W) of a picture (H, W, C); raises what the prediction raises."""
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        height, width = (-(-side // self._bucket) * self._bucket for side in image.shape[:2])
        with self._changed:
            self._waiting.append(_Job(image, (height, width), loop, answer))
            self._changed.notify()
        return await answer

    def stop(self) -> None:
        """End the worker after its batch."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (jobs := self._next()) is not None:
            try:
                labels = self._compute(jobs) if jobs else []
            except Exception as error:  # told to those who wait; the others are served
                for job in jobs:
                    _tell(job, error)
            else:
                for job, label in zip(jobs, labels, strict=True):
                    _tell(job, label)

    def _next(self) -> list[_Job] | None:
        """The next batch: those of the shape of the first that still is waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return None
            jobs: list[_Job] = []
            kept: deque[_Job] = deque()
            for job in self._waiting:
                if job.answer.cancelled():
                    continue
                fits = not jobs or (
                    job.padded == jobs[0].padded
                    and len(jobs) < self._size
                    and (len(jobs) + 1) * job.padded[0] * job.padded[1] <= self._pixels
                )
                (jobs if fits else kept).append(job)
            self._waiting = kept
            return jobs

    def _compute(self, jobs: list[_Job]) -> list[np.ndarray]:
        height, width = jobs[0].padded
        images = [
            np.pad(
                job.image,
                ((0, height - job.image.shape[0]), (0, width - job.image.shape[1]), (0, 0)),
                mode="reflect",
            )
            for job in jobs
        ]
        count = 1
        while count < len(images):
            count = min(2 * count, self._size)
        images += images[-1:] * (count - len(images))
        shape = (count, height, width)
        if shape not in self.shapes and len(self.shapes) >= self._most:
            self.shapes.clear()
            self._label = self._make()
        self.shapes.add(shape)
        labels = self._label(np.stack(images))
        self.done += 1
        self.pictures += len(jobs)
        return [
            label[: job.image.shape[0], : job.image.shape[1]]
            for job, label in zip(jobs, labels, strict=False)
        ]


def _tell(job: _Job, answer: np.ndarray | Exception) -> None:
    """Hand an answer to the loop of the one who waits, if it still does."""

    def tell() -> None:
        if job.answer.done():
            return
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)

    job.loop.call_soon_threadsafe(tell)
