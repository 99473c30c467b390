"""What the networks share as Flax modules: their fields are checked when they are made."""

import difflib
from collections.abc import Sequence
from functools import cache
from numbers import Integral
from typing import Any, Literal, get_args, get_origin, get_type_hints

from flax import linen as nn

from segjax.errors import SegjaxError


class Module(nn.Module):
    """A Flax module whose fields hold what they are declared to, or it is not made.

    That is of `Literal` one of the values named there; of whole numbers at least 1, or 0 for a
    `pad`; of tuples of them as many as declared; of `taps` blocks of a `depth`; of `heads` a
    divisor of the `width`.

    Raises:
        SegjaxError: a field holds another value.
    """

    def __post_init__(self) -> None:
        kind: Any = type(self)  # of which mypy would not believe that it can be hashed
        for name, words in _words(kind).items():
            if (value := getattr(self, name)) not in words:
                named = {str(word): word for word in words}
                near = difflib.get_close_matches(str(value).lower(), named, n=1)
                meant = f" Did you mean {named[near[0]]!r}?" if near else ""
                raise SegjaxError(
                    f"{kind.__name__}: {name} is {value!r}; expected "
                    f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}.{meant}"
                )
        for name, (number, least) in _numbers(kind).items():
            value = getattr(self, name)
            if value is None:
                continue
            values = (value,) if number is None else value
            most = self.depth - 1 if name.endswith("taps") else _MOST
            if not (
                isinstance(values, tuple | list)
                and len(values) in ((1,) if number is None else number)
                and all(_is_whole(one) and least <= one <= most for one in values)
            ):
                what = "a whole number" if number is None else f"{_told(number)} of whole numbers"
                raise SegjaxError(
                    f"{kind.__name__}: {name} is {value!r}; expected {what} of {least} to {most}."
                )
        if {"width", "heads"} <= _numbers(kind).keys() and self.width % self.heads:
            raise SegjaxError(
                f"{kind.__name__}: a width of {self.width} does not divide among {self.heads} "
                "heads; take a multiple."
            )
        super().__post_init__()


_MOST = 2**16  # of channels, layers, pixels: more is a slip
_ANY = range(1, 33)  # numbers of a tuple that may have any


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _told(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


@cache
def _numbers(module: type) -> dict[str, tuple[Sequence[int] | None, int]]:
    """The fields of whole numbers: how many a tuple may have, None of no tuple; and the least."""
    found: dict[str, tuple[Sequence[int] | None, int]] = {}
    for name, hint in get_type_hints(module).items():
        taps, parts = name.endswith("taps"), get_args(hint)
        least = 0 if taps or name in ("pad", "head") else 1
        if hint in (int, int | None):
            found[name] = None, least
        elif get_origin(hint) is tuple and set(parts) == {int, ...}:
            found[name] = range(33) if taps else _ANY, least
        elif get_origin(hint) is tuple and set(parts) == {int}:
            found[name] = (len(parts),), least
    return found


@cache
def _words(module: type) -> dict[str, tuple[Any, ...]]:
    """The values that each `Literal` field of a module may have."""
    hints = get_type_hints(module)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
