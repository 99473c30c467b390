"""What surrounds a command: errors told by their text, compiled programs kept, a polite stop."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import tyro

from segjax import cache_folder
from segjax.errors import SegjaxError


class CompilationCount:
    """Counts what is compiled from now on, and what the cache on disk held ready."""

    def __init__(self) -> None:
        self.misses = self.hits = 0
        jax.monitoring.register_event_listener(self._listen)

    def _listen(self, event: str, **_: Any) -> None:
        self.misses += event == "/jax/compilation_cache/cache_misses"
        self.hits += event == "/jax/compilation_cache/cache_hits"

    def __str__(self) -> str:
        return f"{self.misses} programs compiled, {self.hits} taken from the cache"


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM asks to stop after the step; a second one stops at once.

    Only for a lone process: those of a cluster would have to stop after the same step.
    """
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    """Run a verb as a command: a SegjaxError is told by its text alone, with exit status 2."""
    use_compilation_cache()
    try:
        tyro.extras.subcommand_cli_from_dict(
            dict(verbs), prog=prog, description=description, args=argv
        )
    except SegjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
