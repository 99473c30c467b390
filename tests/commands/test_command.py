"""What surrounds a verb: how errors, interruptions and closed pipes end."""

import errno
import subprocess
import sys

import pytest

from segjax.commands.command import CompilationCount, command
from segjax.errors import SegjaxError


@pytest.mark.parametrize(
    "error, status, told",
    [
        (SegjaxError("wrong"), 2, "error: wrong\n"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a.json"), 2, "error: a.json: Is a dir"),
        (OSError(errno.EACCES, "No", "a.partial", None, "a"), 2, "error: a: No. Correct the path"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: the disk: No space left"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else None,
)
def test_an_error_is_told_by_its_text(error, status, told, capsys):
    def verb():
        raise error

    with pytest.raises(SystemExit) as stopped:
        command({"verb": verb, "other": verb}, description="", argv=["verb"])
    assert stopped.value.code == status and capsys.readouterr().err.startswith(told)


def test_an_error_of_no_file_is_a_mistake_of_ours():
    def verb():
        raise ConnectionError("of a library")

    with pytest.raises(ConnectionError):
        command({"verb": verb, "other": verb}, description="", argv=["verb"])


def test_a_pipe_that_is_closed_and_a_name_that_is_no_unicode():
    code = (
        "from segjax.commands.command import command\n"
        "def verb():\n"
        "    for i in range(100_000): print('\\udcff', i)\n"
        "command({'verb': verb, 'other': verb}, description='', argv=['verb'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"\\udcff 0\n"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141
    process.stderr.close()


@pytest.mark.parametrize("number, told", [(0, "0 programs"), (1, "1 program"), (2, "2 programs")])
def test_programs_are_counted_in_words(number, told):
    count = CompilationCount()
    count.misses = number
    assert str(count) == f"{told} compiled, 0 taken from the cache"
