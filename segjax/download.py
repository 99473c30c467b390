"""Files from the web: kept in a folder, verified, and gone on with where they broke off."""

import hashlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from segjax.errors import SegjaxError

_CHUNK = 1 << 20
_NETWORK = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def fetch(
    urls: str | Sequence[str],
    folder: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    attempts: int = 4,
    wait: float = 2.0,
    timeout: float = 60,
) -> Path:
    """Download a file unless the folder has it; it lies there only once it is verified.

    Args:
        urls: http or https; of several mirrors, the next is asked where one fails, and goes on with
            what the one before has sent.
        folder: where it is kept, as the first URL's last part behind the start of the checksum.
        sha256, md5: of the whole file, hexadecimal; MD5 only where no SHA-256 is known.
        attempts: how often a mirror is asked that may still answer.
        wait: seconds before the second attempt; each further one waits twice as long.
        timeout: seconds that a server may be silent.

    Returns:
        The file's path.

    Raises:
        SegjaxError: it cannot be had, or no mirror has the file that the checksum names.
    """
    mirrors = [urls] if isinstance(urls, str) else list(urls)
    path = _place(mirrors[0], folder, sha256, md5)
    if path.exists():
        return path
    partial, failures = _partial(path), {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(attempts):
            if attempt and mirrors:
                time.sleep(wait * 2 ** (attempt - 1))
            for url in tuple(mirrors):
                fresh = not partial.exists()
                try:
                    _transfer(url, partial, timeout)
                except _NETWORK as error:
                    failures[url], again = str(error), _may_pass(error)
                else:
                    wrong = _difference(partial, sha256, md5)
                    if not wrong:
                        partial.replace(path)
                        return path
                    partial.unlink()
                    failures[url] = f"another file ({wrong}), which was thrown away"
                    again = not fresh  # its start may have come from another mirror
                if not again:
                    mirrors.remove(url)
        told = "; ".join(f"{url}: {failure}" for url, failure in failures.items())
    except (OSError, ValueError) as error:  # of the disk, or no URL
        told = str(error)
    kept = partial.stat().st_size if partial.exists() else 0
    raise SegjaxError(
        f"{path.name} cannot be downloaded to {folder}. {told}. {kept:,} bytes are kept; the same "
        "call goes on from there. Or download it yourself and name the file."
    )


def missing(
    url: str, folder: Path, *, size: int, sha256: str | None = None, md5: str | None = None
) -> int:
    """How many bytes of a file of that size `fetch` has still to download; the rest as there."""
    path = _place(url, folder, sha256, md5)
    partial = _partial(path)
    return 0 if path.exists() else size - (partial.stat().st_size if partial.exists() else 0)


def verify(path: Path, *, sha256: str | None = None, md5: str | None = None) -> None:
    """Raise SegjaxError unless the file has the checksum, as of `fetch`."""
    if wrong := _difference(path, sha256, md5):
        raise SegjaxError(
            f"{path} is not the file that was asked for: {wrong}. Look whether it is cut off or "
            "has changed, and get it anew."
        )


def _place(url: str, folder: Path, sha256: str | None, md5: str | None) -> Path:
    name = urllib.parse.unquote(Path(urllib.parse.urlsplit(url).path).name) or "file"
    return folder / f"{_checksum(sha256, md5)[1][:12]}-{name}"


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _transfer(url: str, partial: Path, timeout: float) -> None:
    """Append to `partial` what it lacks of the file."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "segjax"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing lies behind what we have
            return
        raise
    with (
        answer,
        Progress(
            *Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()
        ) as progress,
    ):
        if answer.status != 206:
            have = 0  # the server sends it from the start
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        task = progress.add_task(partial.stem, total=total, completed=have)
        with partial.open("ab" if have else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
    if total is not None and partial.stat().st_size < total:
        raise http.client.IncompleteRead(b"", total - partial.stat().st_size)


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed: not after "not found"."""
    return not isinstance(error, urllib.error.HTTPError) or (
        error.code >= 500 or error.code in (408, 429)
    )


def _difference(path: Path, sha256: str | None, md5: str | None) -> str:
    """What is other than the checksum says, in words; nothing where the file is right."""
    algorithm, expected = _checksum(sha256, md5)
    with path.open("rb") as file:
        got = hashlib.file_digest(file, algorithm).hexdigest()
    size = path.stat().st_size
    return "" if got == expected else f"{algorithm} {got} of {size:,} bytes, expected {expected}"


def _checksum(sha256: str | None, md5: str | None) -> tuple[str, str]:
    """hashlib's name of the algorithm, and the digest in lower case."""
    algorithm, digits, digest = ("sha256", 64, sha256) if sha256 else ("md5", 32, md5 or "")
    if len(digest) != digits or not set(digest.lower()) <= set("0123456789abcdef"):
        raise SegjaxError(f"{digest!r} is no {algorithm}: expected {digits} hexadecimal digits.")
    return algorithm, digest.lower()
