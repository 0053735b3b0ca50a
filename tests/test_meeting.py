"""Workers wait for each other, agree, and say who is missing; all in threads of this process, on loopback."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kerasllm import meeting
from kerasllm.errors import UserError
from kerasllm.meeting import meet

AGREED = {"recipe": "abc"}


@pytest.fixture
def workers():
    """Addresses of three workers whose ports are free."""
    with socket.create_server(("", 0)) as a, socket.create_server(("", 0)) as b, socket.create_server(("", 0)) as c:
        return [f"127.0.0.1:{server.getsockname()[1]}" for server in (a, b, c)]


def outcomes(*calls):
    """What each call of `meet` raised, None where it returned; all at the same time."""
    with ThreadPoolExecutor(len(calls)) as threads:
        futures = [threads.submit(meet, *call) for call in calls]
        errors = [future.exception(timeout=60) for future in futures]
    assert all(error is None or isinstance(error, UserError) for error in errors), errors
    return [error and str(error) for error in errors]


def greeting_of_worker_1(workers):
    agreed = {**AGREED, "list of workers in TF_CONFIG": ", ".join(workers)}
    return json.dumps({"index": 1, "agreed": agreed}).encode() + b"\n"


def connect(address):
    """A connection to a port that is about to be opened."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_all_go_on_when_the_last_has_come_and_the_ports_are_free_again(workers):
    others_are_there = threading.Event()

    def late():
        assert not others_are_there.wait(0.5), "nobody goes on without the last one"
        meet(workers, 2, AGREED)

    def early(index):
        meet(workers, index, AGREED)
        others_are_there.set()

    with ThreadPoolExecutor(3) as threads:
        for future in [threads.submit(early, 0), threads.submit(early, 1), threads.submit(late)]:
            future.result(timeout=60)
    for address in workers:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()


def test_workers_that_do_not_agree_all_say_so(workers):
    two = workers[:2]
    expected = "worker 1 has another recipe than the chief: xyz, not abc"
    assert outcomes((two, 0, AGREED), (two, 1, {"recipe": "xyz"})) == [expected, expected]
    first, second = outcomes((two, 0, AGREED), ([two[0], two[1], "c:3"], 1, AGREED))
    assert first == second
    assert "worker 1 has another list of workers in TF_CONFIG than the chief" in first


def test_who_does_not_come_is_named_to_all_that_came(workers, monkeypatch):
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 1.0)
    found = outcomes((workers, 0, AGREED), (workers, 2, AGREED))
    assert found == [f"worker 1 ({workers[1]}) did not come within 1 s; start it and try again"] * 2


def test_a_chief_that_does_not_come_is_named(workers, monkeypatch):
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 1.0)
    with pytest.raises(UserError, match=rf"^worker 0 \({workers[0]}\) was not there within 1 s; start it first$"):
        meet(workers, 1, AGREED)


def test_a_port_that_is_taken(workers):
    port = int(workers[1].rpartition(":")[2])
    with (
        socket.create_server(("", port)),
        pytest.raises(
            UserError, match=f"^TF_CONFIG: this worker is {workers[1]}, and port {port} cannot be opened here"
        ),
    ):
        meet(workers, 1, AGREED)


def test_two_processes_that_say_they_are_the_same_worker(workers):
    with ThreadPoolExecutor(2) as threads:
        chief = threads.submit(meet, workers, 0, AGREED)
        with connect(workers[0]) as first:
            first.sendall(greeting_of_worker_1(workers))
            second = threads.submit(meet, workers, 1, AGREED)
            expected = "two processes say that they are worker 1; correct one's task.index"
            assert [str(future.exception(timeout=60)) for future in (chief, second)] == [expected] * 2
            assert expected in first.recv(1000).decode()


def test_a_stranger_at_the_door_is_ignored(workers):
    two = workers[:2]
    with ThreadPoolExecutor(1) as threads:
        chief = threads.submit(meet, two, 0, AGREED)
        with connect(two[0]) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n")
        meet(two, 1, AGREED)
        assert chief.result(timeout=60) is None


def test_a_worker_that_was_started_again_takes_the_place_of_its_former_self(workers):
    with ThreadPoolExecutor(2) as threads:
        chief = threads.submit(meet, workers, 0, AGREED)
        with connect(workers[0]) as former:
            former.sendall(greeting_of_worker_1(workers))
        futures = [threads.submit(meet, workers, 1, AGREED), chief]
        meet(workers, 2, AGREED)
        assert [future.result(timeout=60) for future in futures] == [None, None]
