"""For the site: how this project writes docstrings, said as Google's style has it."""

import re
from typing import Any

import griffe

_SEVERAL = re.compile(r"^( {4})(\w+(?:, \w+)+): (.*(?:\n {8}.*)*)", re.MULTILINE)


class Fields(griffe.Extension):
    """Fields are Google's Attributes; "height, width: …" is an entry for each of the names."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for everything that was read."""
        if obj.docstring:
            text = re.sub(r"^Fields:$", "Attributes:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _SEVERAL.sub(_one_each, text)


def _one_each(found: re.Match[str]) -> str:
    indent, names, text = found.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
