"""The lock of a run folder: one training there at a time, whichever machine it runs on."""

import errno
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import jax

from segjax.errors import SegjaxError, SegjaxWarning

if sys.platform != "win32":
    import fcntl

LOCK = "lock"
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process's training; of several processes the first holds it.

    By flock(2) on the file `lock` there, which says who holds it. The system lets go of it when the
    process ends, however it ends, so a file that was left behind locks nothing. Between machines
    NFS (Linux 2.6.12 and later) and Lustre (mounted with `flock`) keep such locks. Where the file
    system keeps none, a SegjaxWarning says so; on Windows nothing is locked.

    What only reads a run needs no lock.

    Raises:
        SegjaxError: another process trains there.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    locks = sys.platform != "win32" and jax.process_index() == 0
    held = _take(folder) if locks and _is_ours(folder) else None
    try:
        yield
    finally:
        if held is not None:
            with suppress(OSError):  # the folder may be gone, or read-only by now
                (folder / LOCK).unlink()
                for path in made:  # where nothing was written, for the start has failed
                    path.rmdir()
            held.close()


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a run's, or may become one; into others nothing is written."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    return (folder / "recipe.json").exists() or not {p.name for p in folder.iterdir()} - {LOCK}


def _take(folder: Path) -> IO[str]:
    """The open file, locked."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
        try:
            # Not fcntl.lockf: any close of the file in this process would end that lock.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                file.seek(0)
                told = file.read().strip() or "another process"
                file.close()
                raise SegjaxError(
                    f"{folder}: {told} is training there. Wait for its end, stop it, or name "
                    "another folder with --run."
                ) from None
            warnings.warn(
                f"{folder}: its file system keeps no locks ({error.strerror}), so a second "
                "training in it would not be noticed. Start one alone.",
                SegjaxWarning,
                stacklevel=4,
            )
            return file
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # removed by its last holder between the opening and the locking
    file.truncate(0)
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started},\n")
    file.flush()
    return file
