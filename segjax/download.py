"""Files from the web: kept in a folder, verified, and gone on with where they broke off."""

import hashlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from segjax.errors import SegjaxError

_CHUNK = 1 << 20


def fetch(
    url: str,
    folder: Path,
    *,
    sha256: str,
    attempts: int = 4,
    wait: float = 2.0,
    timeout: float = 60,
) -> Path:
    """Download a file unless the folder has it; what lies there under its name is verified.

    Args:
        url: http or https.
        folder: where it is kept, as the URL's last part behind the start of the checksum.
        sha256: of the whole file, 64 hexadecimal digits.
        attempts: how often a broken-off transfer is taken up again.
        wait: seconds before the second attempt; each further one waits twice as long.
        timeout: seconds that the server may be silent.

    Returns:
        The file's path.

    Raises:
        SegjaxError: it cannot be had, or is not the file that the checksum names.
    """
    sha256 = sha256.lower()
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise SegjaxError(f"{sha256!r} is no SHA-256: expected 64 hexadecimal digits.")
    name = urllib.parse.unquote(Path(urllib.parse.urlsplit(url).path).name) or "file"
    path = folder / f"{sha256[:12]}-{name}"
    if path.exists():
        return path
    partial = path.with_name(path.name + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(attempts):
            try:
                _transfer(url, partial, timeout)
                break
            except (OSError, http.client.HTTPException) as error:
                if attempt + 1 == attempts or not _may_pass(error):
                    raise
                time.sleep(wait * 2**attempt)
        got = _sha256(partial)
        if got != sha256:
            partial.unlink()
            raise SegjaxError(
                f"{url}: is not the file that was asked for: SHA-256 {got}, expected {sha256}. It "
                "was thrown away; look whether the file has changed, or whether something between "
                "here and there answers in its place."
            )
        partial.replace(path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, SegjaxError):
            raise
        kept = partial.stat().st_size if partial.exists() else 0
        raise SegjaxError(
            f"{url}: cannot be downloaded to {folder}: {error}. {kept:,} bytes are kept; the same "
            f"call goes on from there. Or download it yourself and name the file."
        ) from error
    return path


def _transfer(url: str, partial: Path, timeout: float) -> None:
    """Append to `partial` what it lacks of the file."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "segjax"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
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
    """Whether another attempt may succeed: not after "not found" or with a full disk."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    network = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
    return isinstance(error, network)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
