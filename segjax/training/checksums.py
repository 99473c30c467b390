"""Checksums of a folder's files, in a file beside them: what has changed since is noticed."""

import errno
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = "checksums.json"
_CHUNK = 1 << 20


def seal(folder: Path) -> None:
    """Write the sizes and checksums of the files in a folder's folders, all flushed to the disk."""
    sums = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.parent != folder):
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        sums[path.relative_to(folder).as_posix()] = _checksum(path)
    _write(folder / NAME, json.dumps(sums, indent=1))


def replace(folder: Path, name: str, text: str) -> None:
    """Give a file of a folder, sealed or not, another content.

    The checksum first: after a kill in between, the file is as `damage` may be told is none.
    """
    if (folder / NAME).exists():
        known = json.loads((folder / NAME).read_text(encoding="utf-8"))
        content = text.encode()
        _write(folder / NAME, json.dumps(known | {name: [len(content), zlib.crc32(content)]}))
    _write(folder / name, text)


def damage(folder: Path, *, may_be_empty: str) -> str:
    """What is wrong with the files of a folder; nothing where they are as written, or not sealed.

    Args:
        folder: which `seal` was given.
        may_be_empty: a file of JSON that is no damage where it is {}.
    """
    try:
        sums = json.loads((folder / NAME).read_text(encoding="utf-8"))
        expected = {str(name): (int(size), int(crc)) for name, (size, crc) in sums.items()}
    except FileNotFoundError:
        return ""
    except (ValueError, TypeError, AttributeError, RecursionError):
        return f"{NAME} cannot be read"

    def compared(name: str) -> str:
        why = _compared(folder / name, name, expected[name])
        return "" if why and name == may_be_empty and _is_empty(folder / name) else why

    with ThreadPoolExecutor() as pool:
        return next(filter(None, pool.map(compared, expected)), "")


def _is_empty(path: Path) -> bool:
    try:
        return path.read_bytes() == b"{}"
    except OSError:
        return False


def _checksum(path: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32 of a file: every change of up to 32 bits in a row is found."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def _compared(path: Path, name: str, expected: tuple[int, int]) -> str:
    """What is wrong with a file; nothing where it is as expected."""
    try:
        size, crc = _checksum(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    except OSError as error:
        if error.errno != errno.EIO:  # no damage but permissions, memory …
            raise
        return f"{name} cannot be read ({error.strerror})"
    if size != expected[0]:
        return f"{name} has {size} bytes of {expected[0]}"
    return "" if crc == expected[1] else f"{name} is not as it was written (its checksum differs)"


def _write(path: Path, text: str) -> None:
    """Write a file whole, flushed to the disk, or not at all."""
    unfinished = path.with_name(path.name + ".partial")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
