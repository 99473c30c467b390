"""An error of the system, most often of the disk, as a sentence of a command."""

import errno
import os
import re
from collections.abc import Iterator

_MEND = "Correct the path or its permissions, remove what is in its place, or free the disk."
_ROOM = "Free the disk, or name a folder on another one."
_ADVICE = dict.fromkeys(
    (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EIO,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.EBUSY,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ESTALE,
    ),
    _MEND,
) | dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM)
_TEXTS = {os.strerror(number): number for number in _ADVICE}
_PATH = re.compile(r'(?:file|path|directory):? ?["\'](/[^"\']+)')


def told(error: BaseException) -> str | None:
    """An error of the disk as a sentence, or None of others.

    Also where a library has put its own around it: a group, a cause, or the system's text alone.
    """
    for one in chain(error):
        number, said, named = None, None, None
        if isinstance(one, OSError):
            number, said, named = one.errno, one.strerror, one.filename2 or one.filename
        if number is None:
            text = str(one)
            number = next((n for told, n in _TEXTS.items() if told in text), None)
            if number is None:
                continue
            found = _PATH.search(text)
            named = found[1] if found else None
        elif not named and number not in _ADVICE:  # a network's, perhaps
            continue
        advice = _ADVICE.get(number, _MEND)
        return f"{named or 'the disk'}: {said or os.strerror(number)}. {advice}"
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, those that it is a group of, and those that it came of."""
    if error is None:
        return
    yield error
    for one in getattr(error, "exceptions", ()):
        yield from chain(one)
    yield from chain(error.__cause__ or error.__context__)
