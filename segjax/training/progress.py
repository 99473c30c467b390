"""What a running training tells: to the terminal, to `metrics.jsonl` and to TensorBoard.

It is handed numbers and knows no model, data set or device. It measures time by itself: the time
from one `step` to the next, less what is spent under `paused`.
"""

import json
import math
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0  # where there is no terminal to draw a bar on


class _Timing(NamedTuple):
    seconds: float  # from the step before to this one, without pauses
    waited: float  # of these, waiting for data


class RunLog:
    """The log of one training run; a context manager.

    On a terminal a progress bar is kept up to date, elsewhere a plain line is printed at the first
    and the last step and every ten seconds between. Every `log_every` steps, and at the last, a
    line goes to `metrics.jsonl` and scalars go to TensorBoard.

    A resumed run has `start > 0`. What an earlier process has logged beyond its last checkpoint is
    dropped, as those steps are done again.

    Args:
        folder: the run folder; holds `metrics.jsonl` and `tensorboard/`.
        total: the number of the last step.
        start: the steps already done; the first one told is `start + 1`.
        batch_size: images per step, over all processes.
        log_every: steps per line of `metrics.jsonl`.
        flops: gives the floating-point operations of a step, over all devices; NaN while unknown.
        peak: operations a second that these devices are built for, NaN if unknown.
        console: where to print; by default standard output.
        quiet: write, print and tell nothing, as all processes but the first must.
        tell: called with "logged" or "evaluated", the step, and what metrics.jsonl is told.
        clock: seconds, from any origin.
    """

    _lines: TextIO
    _events: "_Events"

    def __init__(
        self,
        folder: Path,
        *,
        total: int,
        start: int,
        batch_size: int,
        log_every: int,
        flops: Callable[[], float] = lambda: math.nan,
        peak: float = math.nan,
        console: Console | None = None,
        quiet: bool = False,
        tell: Callable[[str, int, Mapping[str, float]], None] = lambda event, number, values: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._folder, self._total, self._start = folder, total, start
        self._batch_size, self._log_every = batch_size, log_every
        self._flops, self._peak = flops, peak
        self._console = console or Console()
        self._quiet, self._tell, self._clock = quiet, tell, clock
        self._bar: Progress | None = None
        self._task = TaskID(0)

        self._losses: list[float] = []  # of the interval up to the next line of metrics.jsonl
        self._skipped = 0.0  # steps of the interval that were left out, see `make_train_step`
        self._interval: list[_Timing] = []
        self._recent: deque[_Timing] = deque(maxlen=50)  # for the eye: steadier than one step
        self._shown_loss = math.nan
        self._first: tuple[int, float] | None = None  # the first step's number and end
        self._last_line = -math.inf

    def __enter__(self) -> Self:
        self._began = self._mark = self._clock()
        if self._quiet:
            return self
        self._folder.mkdir(parents=True, exist_ok=True)
        metrics = self._folder / "metrics.jsonl"
        _drop_lines_after(metrics, self._start)
        self._events = _Events(self._folder / "tensorboard", first=self._start + 1)
        self._lines = metrics.open("a", encoding="utf-8", buffering=1)  # flushed at each newline
        if self._console.is_terminal:
            self._bar = Progress(
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[facts]}", markup=False),
                console=self._console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(
                "", total=self._total, completed=self._start, facts="compiling the first step"
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._quiet:
            return
        if self._bar:
            self._bar.stop()
        self._lines.close()
        self._events.close()

    def step(self, number: int, scalars: Mapping[str, float], *, waited: float) -> None:
        """Tells that a step is finished.

        Args:
            number: the step's number, from `start + 1` to `total`.
            scalars: what the step computed, "loss" and "learning_rate" among it.
            waited: seconds the loop waited for this step's data.
        """
        if self._quiet:
            return
        now = self._clock()
        timing, self._mark = _Timing(now - self._mark, waited), now
        if self._first is None:
            self._first = number, now  # its time is that of the compilation, and counts nowhere
        else:
            self._interval.append(timing)
            self._recent.append(timing)
        loss = float(scalars["loss"])
        self._skipped += scalars.get("skipped", 0)
        if not scalars.get("skipped"):
            self._losses.append(loss)
        # A loss that is not finite is shown at once, and forgotten as soon as one is again.
        smooth = math.isfinite(self._shown_loss)
        self._shown_loss = 0.95 * self._shown_loss + 0.05 * loss if smooth else loss

        last = number == self._total
        if last or number % self._log_every == 0:
            self._log(number, scalars)
        self._show(number, scalars["learning_rate"], now, last)

    def scores(self, number: int, values: Mapping[str, float]) -> None:
        """Tells the validation scores after a step, by name; "mean_iou" is what curves show."""
        if self._quiet:
            return
        self._write(number, values)
        self._to_tensorboard("val", number, values)
        self._tell("evaluated", number, values)
        told = [f"{name} {float(value):.4f}" for name, value in values.items()]
        lines = [f"step {number}"]
        # At the width of a terminal, which would break within a number; a file's lines stay whole.
        width = self._console.width if self._console.is_terminal else math.inf
        for score in told:
            if len(lines[-1]) + 2 + len(score) <= width:
                lines[-1] += f"  {score}"
            else:
                lines.append(f"  {score}")
        self.say("\n".join(lines))

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if not self._quiet:
            # Text and soft_wrap: printed as it is, no markup, and unbroken at a file's 80 columns.
            self._console.print(Text(text), soft_wrap=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what is done meanwhile, as evaluation, out of the images per second."""
        began = self._clock()
        try:
            yield
        finally:
            self._mark += self._clock() - began

    def _log(self, number: int, scalars: Mapping[str, float]) -> None:
        values = (
            dict(scalars)
            | {
                "loss": sum(self._losses) / len(self._losses) if self._losses else math.nan,
                "images_per_second": self._rate(self._interval),
                "data_wait": _share_waited(self._interval),
            }
            | self._speed(self._interval)
        )
        if "skipped" in scalars:
            values["skipped"] = self._skipped
        self._losses, self._skipped, self._interval = [], 0.0, []
        self._write(number, values)
        self._to_tensorboard("train", number, values)
        self._tell("logged", number, values)

    def _write(self, number: int, values: Mapping[str, float]) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        # JSON has no NaN and no infinity.
        valid = {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        record = {"step": number, **valid, "time": time.time()}
        self._lines.write(json.dumps(record, allow_nan=False) + "\n")

    def _to_tensorboard(self, group: str, number: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):  # of others tensorboardX warns: before the second step no rate
                self._events.add(f"{group}/{name}", float(value), number)

    def _show(self, number: int, learning_rate: float, now: float, last: bool) -> None:
        facts = [
            f"loss {self._shown_loss:.4f}",
            f"lr {learning_rate:.2e}",
            f"{_told(self._rate(self._recent), '.1f')} img/s",
            f"wait {_told(_share_waited(self._recent), '.0%')}",
            f"{_duration(now - self._began)}<{_duration(self._seconds_left(number, now))}",
        ]
        if self._bar:
            self._bar.update(self._task, completed=number, facts="  ".join(facts))
        elif last or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            facts[3:3] = self._told_speed()
            self.say("  ".join([f"step {number}/{self._total}", *facts]))

    def _rate(self, timings: Sequence[_Timing]) -> float:
        """Images per second, NaN before the second step."""
        seconds = sum(timing.seconds for timing in timings)
        return self._batch_size * len(timings) / seconds if seconds > 0 else math.nan

    def _speed(self, timings: Sequence[_Timing]) -> dict[str, float]:
        """FLOP/s, and as a share of the peak (model FLOPs utilisation), where they are known."""
        rate = self._flops() * self._rate(timings) / self._batch_size
        found = {"flops_per_second": rate, "mfu": rate / self._peak}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def _told_speed(self) -> list[str]:
        speed = self._speed(self._recent)
        if not speed:
            return []
        share = f" ({speed['mfu']:.0%} of the peak)" if "mfu" in speed else ""
        return [f"{speed['flops_per_second'] / 1e12:.3g} TFLOP/s{share}"]

    def _seconds_left(self, number: int, now: float) -> float:
        """From the whole run so far, pauses included; NaN before the second step."""
        first, ended = self._first or (number, now)
        done = number - first
        return (now - ended) / done * (self._total - number) if done else math.nan


class _Events:
    """A file of scalars for TensorBoard, each written at once.

    tensorboardX's own writer is a thread, which a full disk or a clock that jumps ends without a
    word; the training then waits for it for ever.

    Args:
        folder: made where it is missing.
        first: the step from which on TensorBoard hides what earlier files of the folder hold.
    """

    def __init__(self, folder: Path, *, first: int) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import masked_crc32c

        self._proto, self._crc = event_pb2, masked_crc32c
        self._summary = summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("ab", buffering=0)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(file_version="brain.Event:2")
        self._write(step=first, session_log=start)

    def add(self, name: str, value: float, step: int) -> None:
        """Write a scalar."""
        scalar = self._summary.Value(tag=name, simple_value=value)
        self._write(step=step, summary=self._summary(value=[scalar]))

    def close(self) -> None:
        """No more will come."""
        self._file.close()

    def _write(self, **event: Any) -> None:
        data = self._proto.Event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        parts = (length, self._checksum(length), data, self._checksum(data))
        self._file.write(b"".join(parts))

    def _checksum(self, data: bytes) -> bytes:
        return struct.pack("<I", self._crc(data))


def _share_waited(timings: Sequence[_Timing]) -> float:
    seconds = sum(timing.seconds for timing in timings)
    return sum(timing.waited for timing in timings) / seconds if seconds > 0 else math.nan


def _told(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _duration(seconds: float) -> str:
    return "–" if math.isnan(seconds) else str(timedelta(seconds=round(seconds)))


def _drop_lines_after(path: Path, step: int) -> None:
    """Keeps the lines up to a step; a last one that is torn goes too."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            keep = json.loads(line)["step"] <= step
        except (ValueError, TypeError, KeyError, RecursionError):
            # Broken elsewhere than at the end: not a killed run's doing, so for a person to see.
            keep = number < len(lines)
        if keep:
            kept.append(line.rstrip(b"\r\n") + b"\n")
    # A kill while writing must not cost the history.
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)
