"""What surrounds a command: errors told by their text, compilations counted, a polite stop."""

import difflib
import io
import os
import runpy
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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


@contextmanager
def interruption() -> Iterator[Callable[[], int]]:
    """Ctrl-C or SIGTERM asks to stop after the step, and is told so; a second one ends at once.

    Gives a function: the signal's number once it came, 0 before. Only for a lone process: those of
    a cluster would have to stop after the same step.
    """
    import jax

    numbers = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
    asked: list[int] = []

    def listen() -> None:
        heard = 0
        while number := listener.recv(1)[0]:
            if number not in numbers:
                continue
            heard += 1
            if heard == 1:
                os.write(2, b"\nstopping after this step (again: at once)\n")
            else:
                # No exception, of which each library's threads would make something of their own.
                os.write(2, _SHOW_CURSOR if sys.stderr.isatty() else b"")
                os._exit(128 + number)

    # Python's own handlers wait until the main thread is back from XLA, which may take minutes;
    # the system writes to this socket at once, and a thread reads.
    listener, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    fd = signal.set_wakeup_fd(wakeup.fileno()) if numbers else -1
    before = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in numbers}
    try:
        yield lambda: asked[0] if asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if numbers:
            signal.set_wakeup_fd(fd)
        wakeup.send(b"\0")
        thread.join()
        listener.close()
        wakeup.close()


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
        sys.exit(2)
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python tells it again as it ends
        sys.exit(141)  # 128 + SIGPIPE, which Windows lacks
    except Exception as error:
        if (line := told(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


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
