"""What surrounds a command: errors told by their text, compilations counted, a polite stop."""

import difflib
import errno
import io
import os
import runpy
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tyro

from segjax.commands.system_error import told
from segjax.errors import SegjaxError, SegjaxWarning

_SHOW_CURSOR = b"\033[?25h"  # a progress bar has hidden it


class CompilationCount:
    """Counts what is compiled from now on, and what the cache on disk held ready."""

    def __init__(self) -> None:
        import jax  # here, for the verb `models` need not wait for it

        self.misses = self.hits = 0
        jax.monitoring.register_event_listener(self._listen)

    def _listen(self, event: str, **_: Any) -> None:
        self.misses += event == "/jax/compilation_cache/cache_misses"
        self.hits += event == "/jax/compilation_cache/cache_hits"

    def __str__(self) -> str:
        programs = "1 program" if self.misses == 1 else f"{self.misses} programs"
        return f"{programs} compiled, {self.hits} taken from the cache"


class Interruption:
    """A request to stop, by Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2; of `interruption`.

    Attributes:
        ending: whether the loop has ended for it and only saving is left, which a second one does
            not break off.
        finish: what waits for a save that is running, called before a second one ends all.
    """

    def __init__(self) -> None:
        self.ending = False
        self.finish: Callable[[], object] = lambda: None
        self._asked: list[int] = []
        self._politely = False

    def __call__(self) -> int:
        """The signal's number once it came, 0 before."""
        return self._asked[0] if self._asked else 0

    @contextmanager
    def politely(self) -> Iterator[None]:
        """Raises nothing for a signal here: who loops asks whether there was one.

        Raises:
            KeyboardInterrupt: at the end, of a signal for which nobody has stopped.
        """
        self._politely = True
        try:
            yield
        finally:
            self._politely, self.finish = False, lambda: None
        if self._asked:
            raise KeyboardInterrupt(self._asked[0])

    def _handle(self, number: int, _: object) -> None:
        """In the main thread, once it is back from XLA."""
        self._asked.append(number)
        if not self._politely:
            raise KeyboardInterrupt(number)

    def _hear(self, number: int, heard: int) -> None:
        """In a thread of its own, at once."""
        if heard == 1:
            after = " after this step" if self._politely else ""
            _write(f"\nstopping{after} (again: at once)\n")
        elif heard == 2 and self.ending:
            _write("saving the last step (again: at once)\n")
        elif heard == 2:
            threading.Thread(target=self._end, args=(number, self.finish), daemon=True).start()
        else:
            self._end(number)

    def _end(self, number: int, finish: Callable[[], object] = lambda: None) -> None:
        # No exception, of which each library's threads would make something of their own.
        try:
            finish()
        finally:
            os.write(2, _SHOW_CURSOR if sys.stderr.isatty() else b"")
            os._exit(128 + number)


def _write(text: str) -> None:
    with suppress(OSError):  # of a terminal that was closed, which is a reason to be here
        os.write(2, text.encode())


@contextmanager
def interruption() -> Iterator[Interruption]:
    """A signal asks to stop and is told so; a second one ends at once, but for a running save.

    Where nobody asks for it (`Interruption.politely`) it is a KeyboardInterrupt of its number.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # Windows lacks most
    numbers = {getattr(signal, name) for name in names if hasattr(signal, name)}
    if signal.getsignal(getattr(signal, "SIGHUP", signal.SIGINT)) == signal.SIG_IGN:
        numbers -= {signal.SIGHUP}  # by nohup
    interrupted = Interruption()

    def listen() -> None:
        heard = 0
        while number := listener.recv(1)[0]:
            if number in numbers:
                heard += 1
                interrupted._hear(number, heard)

    # Python's own handlers wait until the main thread is back from XLA, which may take minutes;
    # the system writes to this socket at once, and a thread reads.
    listener, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    fd = signal.set_wakeup_fd(wakeup.fileno())
    before = {number: signal.signal(number, interrupted._handle) for number in numbers}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd)
        wakeup.send(b"\0")
        thread.join()
        listener.close()
        wakeup.close()


class _Lasting(io.FileIO):
    """Output whose reader may go, as `head` or a terminal: what is written then goes nowhere."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            _write("The output is read by nobody any more; the command goes on.\n")
            return super().write(content)


def keep_on_without_readers() -> None:
    """From now on a closed output ends nothing: `| head`, or a terminal that is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue  # somebody's own, as a test's
        stream.flush()
        raw = _Lasting(stream.fileno(), "wb", closefd=False)
        # Python -u writes at once, to the raw file; which typeshed has not for a text's.
        writer: Any = raw if stream.write_through else io.BufferedWriter(raw)
        lasting = io.TextIOWrapper(
            writer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, lasting)


def command(
    verbs: Mapping[str, Any],
    *,
    description: str,
    prog: str | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Run a verb as a command: a user's or the disk's error is told by its text, with status 2.

    So is a SegjaxWarning, and the command goes on.
    """
    warnings.formatwarning = _format_warning
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold any bytes
            stream.reconfigure(errors="backslashreplace")
    try:
        if argv and argv[0] not in verbs and argv[0][:1] != "-":
            raise SegjaxError(_no_verb(argv[0], verbs))
        tyro.extras.subcommand_cli_from_dict(
            dict(verbs), prog=prog, description=description, args=argv
        )
    except SegjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python tells it again as it ends
        sys.exit(141)  # 128 + SIGPIPE, which Windows lacks
    except Exception as error:
        if (line := told(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + (error.args[0] if error.args else signal.SIGINT))


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """Run a recipe's script with options, as Python does that is given its file."""
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


_format_others = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], *place: Any, **line: Any
) -> str:
    if issubclass(category, SegjaxWarning):
        return f"warning: {message}\n"
    return _format_others(message, category, *place, **line)


def _no_verb(word: str, verbs: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, verbs, n=1)
    meant = f"Did you mean {near[0]!r}? " if near else ""
    return f"{word!r} is no verb. {meant}There are: {', '.join(verbs)}; each has --help."
