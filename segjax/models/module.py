"""What the networks share as Flax modules: their fields are checked when they are made."""

import difflib
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from flax import linen as nn

from segjax.errors import SegjaxError


class Module(nn.Module):
    """A Flax module whose `Literal` fields hold one of the values named there, or it is not made.

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
        super().__post_init__()


@cache
def _words(module: type) -> dict[str, tuple[Any, ...]]:
    """The values that each `Literal` field of a module may have."""
    hints = get_type_hints(module)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
