"""What surrounds a command: errors told by their text, compiled programs kept, a polite stop."""

import errno
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import tyro

from segjax import cache_folder
from segjax.errors import SegjaxError

_ADVICE = "Correct the path or its permissions, remove what is in its place, or free the disk."
_SHOW_CURSOR = b"\033[?25h"  # a progress bar has hidden it


class CompilationCount:
    """Counts what is compiled from now on, and what the cache on disk held ready."""

    def __init__(self) -> None:
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


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that they are compiled once only.

    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    # By default JAX keeps only what took it over a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def command(
    verbs: Mapping[str, Any],
    *,
    description: str,
    prog: str | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Run a verb as a command: a user's or the disk's error is told by its text, with status 2."""
    use_compilation_cache()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold any bytes
            stream.reconfigure(errors="backslashreplace")
    try:
        tyro.extras.subcommand_cli_from_dict(
            dict(verbs), prog=prog, description=description, args=argv
        )
    except SegjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python tells it again as it ends
        sys.exit(141)  # 128 + SIGPIPE, which Windows lacks
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        where = error.filename2 or error.filename or "the disk"
        print(f"error: {where}: {error.strerror}. {_ADVICE}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
