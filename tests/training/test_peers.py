"""Processes meet, and miss each other; in threads here, over sockets as between machines."""

import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from segjax.errors import SegjaxError
from segjax.training import peers
from segjax.training.peers import Lost, lasting, meet


@pytest.fixture
def address():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return "localhost", probe.getsockname()[1]


def meet_all(address, places, **options):
    """What `meet` gives or raises at each (process, processes), all at once."""
    options = {"within": 10.0, "say": lambda text: None} | options
    found = [None] * len(places)

    def one(index, process, processes):
        try:
            found[index] = meet(address, process=process, processes=processes, **options)
        except SegjaxError as error:
            found[index] = error

    threads = [
        threading.Thread(target=one, args=(index, *place)) for index, place in enumerate(places)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_all_meet_learn_one_port_and_leave_together(address):
    met = meet_all(address, [(i, 3) for i in range(3)])
    assert [x.process for x in met] == [0, 1, 2]
    assert len({x.service for x in met}) == 1
    left = []
    waiting = threading.Thread(target=lambda: (met[1].leave(), left.append(1)))
    waiting.start()
    met[2].leave(wait=0.5)
    assert not left  # for the first is not there yet
    met[0].leave()
    waiting.join(5)
    assert left == [1]


def test_who_is_missing_is_told_then_given_up(address):
    said = []
    first, second = meet_all(address, [(0, 4), (2, 4)], within=1.0, tell_after=0.3, say=said.append)
    assert said == ["waiting for 2 processes (1, 3) of 4 for 1 seconds"]
    assert isinstance(first, Lost) and str(first) == str(second)
    assert str(first).startswith("2 processes (1, 3) of 4 did not come within 1 seconds to localh")
    assert first.status == second.status == 75


def test_a_first_process_that_is_missing_is_told(address):
    said = []
    (lost,) = meet_all(address, [(1, 2)], within=0.5, tell_after=0.1, say=said.append)
    assert isinstance(lost, Lost) and "was not reached within 0 seconds" in str(lost)
    assert said[0].startswith(f"waiting for the first process at localhost:{address[1]} (")


@pytest.mark.parametrize(
    "places, told",
    [
        ([(0, 2), (1, 3)], "Process 1 of 2 .* was told of 3 processes, the first one of 2"),
        ([(0, 3), (1, 3), (1, 3)], "Process 1 of 3 .* was started twice"),
    ],
)
def test_what_all_were_told_must_fit(address, places, told):
    for error in meet_all(address, places):
        with pytest.raises(SegjaxError, match=told):
            raise error
        assert error.status == 2


def test_a_port_that_is_taken(address):
    with (
        socket.create_server(("", address[1])),
        pytest.raises(SegjaxError, match=r"^Port .* cannot"),
    ):
        meet(address, process=0, processes=2, within=1, say=print)


def test_who_speaks_otherwise_is_no_process_of_ours(address):
    first = []
    options = {"processes": 2, "within": 10, "say": print}
    meeting = threading.Thread(target=lambda: first.append(meet(address, process=0, **options)))
    meeting.start()
    time.sleep(0.2)
    with socket.create_connection(address) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(1) == b""
    second = meet(address, process=1, **options)
    meeting.join(5)
    leaving = [threading.Thread(target=x.leave) for x in (*first, second)]
    assert len(leaving) == 2
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join(5)


# A process that meets the others and then does as it is told.
MEMBER = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("peers", sys.argv[5])  # alone, without JAX
peers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peers)
process, processes, port, does = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
peers.BEAT, peers.SILENCE = 0.3, 3.0
met = peers.meet(("localhost", port), process=process, processes=processes, within=20, say=print)
time.sleep(0.5)
if does == "dies":
    os.kill(os.getpid(), 9)
if does == "freezes":
    os.kill(os.getpid(), 19)
if does == "fails":
    met.fail("no data there", 2)
    os._exit(2)
if does == "leaves":
    met.leave()
    sys.exit()
time.sleep(30)
"""


@pytest.mark.parametrize(
    "does, one, status, told",
    [
        ("dies", 1, 75, r"error: Process 1 of 3 \(on \S+\) has died, so the others end too. Start"),
        ("dies", 0, 75, r"error: Process 0 of 3 \(on localhost\) has died, so the others end too."),
        ("freezes", 2, 75, r"error: Process 2 of 3 \(on \S+\) has not been heard of for 3 seconds"),
        ("fails", 2, 2, r"error: Process 2 of 3 \(on \S+\): no data there"),
        ("leaves", None, 0, ""),
    ],
)
def test_one_that_goes_ends_the_others_by_a_line(address, does, one, status, told):
    def start(process):
        act = does if one in (process, None) else "stays"
        return subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(process), "3", str(address[1]), act, peers.__file__],
            stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip

    started = [start(process) for process in range(3)]
    try:
        for process in started:
            if one is None or process is not started[one]:
                text = process.communicate(timeout=25)[1]
                assert process.returncode == status
                assert re.fullmatch(f"\\n{told}.*\\n" if told else "", text), text
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_lasting_port_does_not_close_with_what_it_leads_to():
    with socket.create_server(("localhost", 0)) as server:
        port = lasting(("localhost", server.getsockname()[1]))
        with socket.create_connection(("127.0.0.1", port)) as near:
            far, _ = server.accept()
            near.sendall(b"there")
            assert far.recv(10) == b"there"
            far.sendall(b"back")
            assert near.recv(10) == b"back"
            far.close()
            near.settimeout(0.2)
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    near.recv(1)
                near.sendall(b"lost")


def test_a_frozen_peer_is_found_well_within_a_minute():
    assert peers.SILENCE + peers.BEAT < 45
