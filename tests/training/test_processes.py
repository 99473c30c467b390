"""What is told before a cluster is joined; how many processes agree is in tests/test_cluster.py."""

import pytest

from segjax.errors import SegjaxError
from segjax.training import processes
from segjax.training.processes import Agreement, check_alike, join_cluster

GOOD = {
    "JAX_COORDINATOR_ADDRESS": "localhost:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "0",
}


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("JAX_COORDINATOR_ADDRESS", "nonsense", r"is 'nonsense'; expected host:port of the first"),
        ("JAX_COORDINATOR_ADDRESS", "host:99999", "expected host:port"),
        ("JAX_COORDINATOR_ADDRESS", ":1", "expected host:port"),
        ("JAX_COORDINATOR_ADDRESS", None, "No cluster was found, and JAX_COORDINATOR_ADDRESS not"),
        ("JAX_NUM_PROCESSES", "two", "JAX_NUM_PROCESSES is 'two'; expected a whole number"),
        ("JAX_NUM_PROCESSES", "0", "JAX_PROCESS_ID is 0 and JAX_NUM_PROCESSES 0; expected"),
        ("JAX_PROCESS_ID", "2", "JAX_PROCESS_ID is 2 and JAX_NUM_PROCESSES 2; expected"),
    ],
)
def test_a_wrong_place_is_told_at_once(name, value, told, monkeypatch):
    for variable, good in GOOD.items():
        monkeypatch.setenv(variable, good)
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(SegjaxError, match=told), join_cluster():
        raise AssertionError("joined")


def test_what_differs_is_told_with_the_processes(monkeypatch):
    others = [{"seed": "0", "steps": "5"}, {"seed": "0", "steps": "5"}, {"seed": "1"}]
    check_alike(others[0])
    monkeypatch.setattr(processes, "from_all_processes", lambda thing: others)
    with pytest.raises(
        SegjaxError,
        match="seed is 0 in process 0, 1 in process 2; steps is 5 in process 0, None in process 2",
    ):
        check_alike(others[0])


def test_alone_one_agrees_with_itself_at_once():
    agreed = Agreement()
    assert [agreed(number) for number in (0, 15, 0)] == [0, 15, 0]
