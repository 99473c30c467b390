"""The observers of a training, whose mistakes must not cost what it has computed."""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from segjax.errors import SegjaxError
from segjax.training.observers import Observer


class Observing:
    """Tells observers what happens, and keeps what the first of them to fail has raised.

    Attributes:
        error: that, in words; None as long as none has failed.
        step, scores: what they are told at the end.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)
        self.error: SegjaxError | None = None
        self.step, self.scores = 0, dict[str, float]()
        self._started = False

    @property
    def to_stop(self) -> bool:
        """Whether to end the training after this step, whose state is then kept.

        Of several processes all would have to, but the others know of nothing.
        """
        return self.error is not None and jax.process_count() == 1

    def start(self, run: Path, fields: Mapping[str, Any], step: int) -> None:
        """Tells of the start.

        Raises:
            SegjaxError: `error`, for nothing is computed yet that could be lost.
        """
        self.step, self._started = step, True
        self.tell("started", run, fields, step)
        if self.error:
            raise self.error

    @contextmanager
    def to_the_end(self) -> Iterator[None]:
        """Tells those who were told of the start of the end, however it comes.

        Raises:
            SegjaxError: `error`.
        """
        finished = False
        try:
            yield
            finished = True
        finally:
            if self._started:
                self.tell("finished", self.step, self.scores if finished else {})
        if self.error:
            raise self.error

    def tell(self, event: str, *told: Any) -> None:
        """Call a method of all of them, but for those that have failed."""
        for observer in tuple(self._observers):
            try:
                getattr(observer, event)(*told)
            except Exception as error:  # anyone's observer, which may raise anything
                self._observers.remove(observer)
                if self.error is None:
                    self.error = SegjaxError(_words(observer, event, error))
                    self.error.__cause__ = error


def _words(observer: Observer, event: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is this file's
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return (
        f"The observer {type(observer).__name__} raised in its `{event}`: "
        f"{type(error).__name__}: {error}{where}. Correct it, or leave it out."
    )
