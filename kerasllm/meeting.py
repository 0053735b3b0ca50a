"""Workers find each other before TensorFlow starts: its own wait can be neither interrupted nor explained.

Each other worker connects to the chief's port, which TensorFlow's server takes over afterwards, and says in one line of
JSON who it is; when all are there the chief answers each with one line, empty or with what is wrong.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from kerasllm.errors import UserError
from kerasllm.terminal import say

MEETING_SECONDS = 600.0
"""How long a worker waits for the others: a machine may have to be found and an image loaded first."""
_LINE_BYTES = 1 << 16
_ANSWER_SECONDS = 5.0


def meet(workers: Sequence[str], index: int, agreed: Mapping[str, str]) -> None:
    """Returns on all workers once all are there and agree.

    Args:
        workers: `host:port` of each, the chief first.
        index: of this process.
        agreed: what must be the same on all workers, by its name.

    Raises:
        UserError: the port is taken, a worker does not come within `MEETING_SECONDS`, or they do not agree.
    """
    agreed = {"list of workers in TF_CONFIG": ", ".join(workers), **agreed}
    port = int(workers[index].rpartition(":")[2])
    deadline = time.monotonic() + MEETING_SECONDS
    with _listen(port, workers[index]) as server:
        if index == 0:
            _gather(server, workers, agreed, deadline)
            return
    _report(workers, index, agreed, deadline)


def _listen(port: int, address: str) -> socket.socket:
    """A server on the port, on all addresses of this machine, as TensorFlow's will be."""
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"TF_CONFIG: this worker is {address}, and port {port} cannot be opened here ({error.strerror}); "
            "end what uses it, or name another"
        ) from error


def _gather(server: socket.socket, workers: Sequence[str], agreed: Mapping[str, str], deadline: float) -> None:
    """The chief's part: waits for all, then tells them to begin, or what is wrong."""
    say(f"waiting for {len(workers) - 1} other worker(s): {', '.join(workers[1:])}")
    with ExitStack() as stack:
        connections: dict[int, socket.socket] = {}
        spoken: list[socket.socket] = []
        complaint = ""
        while len(connections) < len(workers) - 1 and not complaint:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = [f"worker {i} ({w})" for i, w in enumerate(workers) if i and i not in connections]
                complaint = f"{', '.join(missing)} did not come within {MEETING_SECONDS:g} s; start it and try again"
                break
            greeting = _read_line(connection, _ANSWER_SECONDS)
            if greeting is None or "agreed" not in greeting:
                continue  # somebody else, such as a probe of the port
            found = greeting["index"]
            complaint = _difference(greeting["agreed"], agreed, f"worker {found}")
            connections = {worker: other for worker, other in connections.items() if not _has_hung_up(other)}
            if found == 0 or found in connections:
                complaint = complaint or f"two processes say that they are worker {found}; correct one's task.index"
            connections[found] = connection
            spoken.append(connection)
        for connection in spoken:
            _answer(connection, complaint)
    if complaint:
        raise UserError(complaint)


def _has_hung_up(connection: socket.socket) -> bool:
    """Whether a worker that was there has ended; another process may then take its place."""
    connection.setblocking(False)
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.setblocking(True)


def _difference(theirs: Mapping[str, str], ours: Mapping[str, str], who: str) -> str:
    """What another worker says otherwise than the chief."""
    for name, value in ours.items():
        if theirs.get(name) != value:
            return f"{who} has another {name} than the chief: {theirs.get(name)}, not {value}"
    return ""


def _answer(connection: socket.socket, complaint: str) -> None:
    """Sends the line, and lets the other side hang up first, so that the port is free for TensorFlow at once."""
    try:
        connection.sendall(json.dumps({"complaint": complaint}).encode("utf-8") + b"\n")
        connection.settimeout(_ANSWER_SECONDS)
        connection.recv(1)
    except OSError:
        return  # it is gone, and will be missed where all wait for it next


def _report(workers: Sequence[str], index: int, agreed: Mapping[str, str], deadline: float) -> None:
    """The part of all others: finds the chief, says who this is, and waits for the answer."""
    host, _, port = workers[0].rpartition(":")
    say(f"worker {index} of {len(workers)}: waiting for worker 0 ({workers[0]}), which shows how far the run is")
    line = json.dumps({"index": index, "agreed": agreed}).encode("utf-8") + b"\n"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
                connection.sendall(line)
                answer = _read_line(connection, MEETING_SECONDS + _ANSWER_SECONDS)
        except OSError:
            answer = None
        if answer is not None:
            if answer["complaint"]:
                raise UserError(answer["complaint"])
            return
        time.sleep(0.5)  # it has not started yet, or a server of an earlier run is still there
    raise UserError(f"worker 0 ({workers[0]}) was not there within {MEETING_SECONDS:g} s; start it first")


def _read_line(connection: socket.socket, seconds: float) -> dict[str, Any] | None:
    """One line of JSON; None from somebody who does not speak like this."""
    content = b""
    try:
        connection.settimeout(seconds)
        while not content.endswith(b"\n") and len(content) < _LINE_BYTES:
            piece = connection.recv(4096)
            if not piece:
                return None
            content += piece
        found = json.loads(content)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
