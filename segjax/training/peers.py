"""Processes of a cluster that meet, and then watch each other: none waits for one that is gone.

JAX tells of a missing or dead process after minutes, by a stack of C++, or not at all. Here each
process has a connection to the first one, over which both say every few seconds that they live. The
system closes it when a process dies, however it dies. Knows nothing of JAX.
"""

import json
import math
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from segjax.errors import SegjaxError

LOST = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the command, start it again
BEAT, SILENCE = 5.0, 30.0  # seconds between signs of life, and after which a process counts as dead
_GRACE = 5.0  # for this process to find the same mistake and tell it by itself
_AGAIN = "Start all of them with the same command; it goes on from the last checkpoint."


class Lost(SegjaxError):
    """A process of the cluster is missing or gone; the command may be started again."""

    status = LOST


class _Link:
    """A connection, over which lines of JSON go; an empty line is a sign of life."""

    def __init__(self, connection: socket.socket, process: int = -1, host: str = "") -> None:
        self.process, self.host = process, host
        self.heard = time.monotonic()
        self.done = False
        self._connection, self._lock, self._begun = connection, threading.Lock(), b""
        connection.setblocking(False)

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, **message: Any) -> None:
        """To one that is gone or frozen nothing is sent; reading will tell."""
        line = json.dumps(message) if message else ""
        with self._lock, suppress(OSError):
            self._connection.send(line.encode() + b"\n")

    def read(self) -> list[dict[str, Any]] | None:
        """What has come; None once the other end is gone."""
        try:
            content = self._connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not content:
            return None
        self.heard = time.monotonic()
        *lines, self._begun = (self._begun + content).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def close(self) -> None:
        self._connection.close()


class Peers:
    """The processes of a cluster, met by `meet`.

    Attributes:
        service: host and port that the first process has chosen for JAX.
    """

    def __init__(
        self, process: int, processes: int, links: Sequence[_Link], service: tuple[str, int]
    ) -> None:
        self.process, self.processes, self.service = process, processes, service
        self._links = {link.process: link for link in links}
        self._failing, self._finished = threading.Event(), threading.Event()
        self._done = False  # with what this process had to do
        threading.Thread(target=self._watch, daemon=True, name="peers").start()

    def leave(self, *, wait: float = 60.0) -> None:
        """Return once every process has come here, or after so many seconds."""
        self._done = True
        for link in [*self._links.values()] if self.process else []:
            link.send(done=True)
        self._finished.wait(wait)

    def fail(self, text: str, status: int) -> None:
        """Let the others end with this text and exit status, for this process is about to."""
        self._failing.set()
        told = f"{_name(self.process, self.processes, socket.gethostname())}: {text}"
        for link in [*self._links.values()]:
            link.send(failed=told, status=status)

    def _watch(self) -> None:
        beat, ended = time.monotonic(), math.inf
        with selectors.DefaultSelector() as selector:
            for link in self._links.values():
                selector.register(link, selectors.EVENT_READ, link)
            while self._links and time.monotonic() < ended + _GRACE:
                for key, _ in selector.select(0.2):
                    self._read(selector, key.data)
                now = time.monotonic()
                if now - beat >= BEAT:
                    beat = now
                    for link in self._links.values():
                        link.send()
                for link in self._links.values():
                    if now - link.heard > SILENCE and not link.done:
                        self._lose(link, f"has not been heard of for {SILENCE:.0f} seconds")
                links = self._links.values()
                if not self.process and self._done and all(x.done for x in links) and ended > now:
                    ended = now
                    for link in links:  # each of which closes then
                        link.send(done=True)
            for link in self._links.values():
                link.close()
        self._finished.set()

    def _read(self, selector: selectors.BaseSelector, link: _Link) -> None:
        messages = link.read()
        for message in messages or ():
            self._hear(link, message)
        if messages is None or (self.process and link.done):
            selector.unregister(link)
            self._links.pop(link.process).close()
            if not link.done:
                self._lose(link, "has died")

    def _hear(self, link: _Link, message: Mapping[str, Any]) -> None:
        if "done" in message:
            link.done = True  # the first one says so when all are
        elif "failed" in message:
            status = message["status"]
            self._end(message["failed"], status, but=link, grace=0 if status == LOST else _GRACE)

    def _lose(self, link: _Link, how: str) -> None:
        who = _name(link.process, self.processes, link.host)
        self._end(f"{who} {how}, so the others end too. {_AGAIN}", LOST, but=link)

    def _end(self, text: str, status: int, *, but: _Link, grace: float = 0.0) -> None:
        """Tell the others, then end this process by a line, unless it ends by itself."""
        for link in self._links.values():
            if link is not but:
                link.send(failed=text, status=status)
        if not self._failing.wait(grace):
            end_at_once(f"error: {text}", status)


def end_at_once(line: str, status: int) -> None:
    """End this process by a line, wherever its threads are."""
    show_cursor = b"\033[?25h" if sys.stderr.isatty() else b""  # a progress bar has hidden it
    os.write(2, show_cursor + f"\n{line}\n".encode(errors="backslashreplace"))
    os._exit(status)


def meet(
    address: tuple[str, int],
    *,
    process: int,
    processes: int,
    within: float,
    say: Callable[[str], None],
    tell_after: float = 10.0,
) -> Peers:
    """Wait for all processes of a cluster.

    Args:
        address: host and port at which the first process can be reached.
        process, processes: which one this is, from 0, of how many.
        within: seconds after which to give up.
        say: given a line on what is waited for, once it takes long.
        tell_after: seconds that are long.

    Raises:
        Lost: one has not come; named, where this is the first.
        SegjaxError: the port is taken, or the processes were told different things.
    """
    if process:
        return _reach(address, process, processes, within, say, tell_after)
    return _gather(address, processes, within, say, tell_after)


def _gather(
    address: tuple[str, int],
    processes: int,
    within: float,
    say: Callable[[str], None],
    tell_after: float,
) -> Peers:
    """As the first process."""
    began, told, links = time.monotonic(), False, dict[int, _Link]()
    with _listener(address[1]) as listener, selectors.DefaultSelector() as selector:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        try:
            while len(links) < processes - 1:
                waited = time.monotonic() - began
                missing = [str(i) for i in range(1, processes) if i not in links]
                if waited > within:
                    raise Lost(
                        f"{_counted(missing)} of {processes} did not come within {within:.0f} "
                        f"seconds to {address[0]}:{address[1]}. See that each is started, with an "
                        "address that leads to the first one, or wait longer (--wait)."
                    )
                if waited > tell_after and not told:
                    told = True
                    say(f"waiting for {_counted(missing)} of {processes} for {within:.0f} seconds")
                for key, _ in selector.select(0.2):
                    if key.data is None:
                        link = _Link(listener.accept()[0])
                        selector.register(link, selectors.EVENT_READ, link)
                        continue
                    _greet(selector, key.data, links, processes)
        except SegjaxError as error:
            for link in links.values():
                link.send(failed=str(error), status=error.status)
                link.close()
            raise
    # Another than the one where they meet, for JAX listens by itself.
    with _listener(0) as free:
        port = free.getsockname()[1]
    for link in links.values():
        link.send(port=port)
        link.heard = time.monotonic()
    return Peers(0, processes, [*links.values()], (address[0], port))


def _greet(
    selector: selectors.BaseSelector, link: _Link, links: dict[int, _Link], processes: int
) -> None:
    """Add one that has said which it is; forget one that is gone or speaks otherwise."""
    try:
        messages = link.read()
        for hello in messages or ():
            link.process, link.host = int(hello["process"]), str(hello["host"])
            name = _name(link.process, processes, link.host)
            twice = links.get(link.process)
            links[link.process if twice is None else -1] = link  # to be told of the error
            if hello["processes"] != processes:
                raise SegjaxError(
                    f"{name} was told of {hello['processes']} processes, the first one of "
                    f"{processes}. Give all the same number (JAX_NUM_PROCESSES)."
                )
            if twice is not None:
                raise SegjaxError(
                    f"{name} was started twice, on {twice.host} too. Give each a number of its own "
                    f"(JAX_PROCESS_ID), 0 to {processes - 1}."
                )
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError):  # no process of ours
        messages = None
    if messages is None:
        selector.unregister(link)
        link.close()
        if links.get(link.process) is link:
            del links[link.process]


def _reach(
    address: tuple[str, int],
    process: int,
    processes: int,
    within: float,
    say: Callable[[str], None],
    tell_after: float,
) -> Peers:
    """As one of the others."""
    began, told = time.monotonic(), False
    where = f"the first process at {address[0]}:{address[1]}"
    while True:
        try:
            link = _Link(socket.create_connection(address, timeout=5.0), 0, address[0])
            break
        except OSError as error:  # it, or the name of its host, may come later
            waited = time.monotonic() - began
            if waited > within:
                raise Lost(
                    f"{where[0].upper()}{where[1:]} was not reached within {within:.0f} seconds "
                    f"({error}). See that it is started, and that the address leads to it, or wait "
                    "longer (--wait)."
                ) from error
            if waited > tell_after and not told:
                told = True
                say(f"waiting for {where} ({error})")
            time.sleep(0.2)
    link.send(process=process, processes=processes, host=socket.gethostname())
    # It has a clock of its own, and says when it gives up.
    with selectors.DefaultSelector() as selector:
        selector.register(link, selectors.EVENT_READ)
        while selector.select(within + SILENCE):
            messages = link.read()
            if messages is None:
                link.close()
                break
            for message in messages:
                if "failed" in message:
                    link.close()
                    kind = Lost if message["status"] == LOST else SegjaxError
                    raise kind(message["failed"])
                return Peers(process, processes, [link], (address[0], message["port"]))
    raise Lost(f"{where[0].upper()}{where[1:]} has gone while the others were waited for. {_AGAIN}")


def lasting(address: tuple[str, int]) -> int:
    """A port of this machine that leads to an address, and stays open when that one closes.

    JAX ends a process by a stack as soon as the connection to the first one breaks. Through this it
    never does; the watch tells it.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def send(near: socket.socket, far: socket.socket) -> None:
        while content := near.recv(1 << 16):
            with suppress(OSError):  # of one that is gone, which JAX is not to learn
                far.sendall(content)
        with suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)

    def connect(near: socket.socket) -> None:
        while True:
            try:
                far = socket.create_connection(address, timeout=5.0)
                break
            except OSError:  # JAX is not listening yet; it gives up by a time of its own
                time.sleep(0.1)
        far.settimeout(None)
        sending = threading.Thread(target=send, args=(near, far), daemon=True)
        sending.start()
        with near, far:
            with suppress(OSError):
                while content := far.recv(1 << 16):
                    near.sendall(content)
            sending.join()

    def accept() -> None:
        while True:
            near, _ = listener.accept()
            threading.Thread(target=connect, args=(near,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def _listener(port: int) -> socket.socket:
    """On all addresses of this machine."""
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise SegjaxError(
            f"Port {port} of this machine cannot be listened on ({error.strerror}). Another "
            "training may run there; give another in JAX_COORDINATOR_ADDRESS."
        ) from error


def _name(process: int, processes: int, host: str) -> str:
    return f"Process {process} of {processes} (on {host})"


def _counted(numbers: Sequence[str]) -> str:
    if len(numbers) == 1:
        return f"process {numbers[0]}"
    shown = [*numbers[:8], "…"] if len(numbers) > 9 else numbers
    return f"{len(numbers)} processes ({', '.join(shown)})"
