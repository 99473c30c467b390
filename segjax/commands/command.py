"""What surrounds a command: errors told by their text, compilations counted, a polite stop."""

import difflib
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tyro

from segjax.errors import SegjaxError, SegjaxWarning


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
        return f"{self.misses} programs compiled, {self.hits} taken from the cache"


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM asks to stop after the step; a second one stops at once.

    Only for a lone process: those of a cluster would have to stop after the same step.
    """
    import jax

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


def command(
    verbs: Mapping[str, Any],
    *,
    description: str,
    prog: str | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Run a verb as a command: a SegjaxError is told by its text alone, with exit status 2.

    So is a SegjaxWarning, and the command goes on.
    """
    warnings.formatwarning = _format_warning
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] not in verbs and argv[0][:1] != "-":
            raise SegjaxError(_no_verb(argv[0], verbs))
        tyro.extras.subcommand_cli_from_dict(
            dict(verbs), prog=prog, description=description, args=argv
        )
    except SegjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


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
