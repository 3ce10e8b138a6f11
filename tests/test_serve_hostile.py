"""serve: hundreds of requests from clients that mean harm or do not know better."""

import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile_bodies import bodies, pages, pictures, schemas, texts, values
from hostile_http import chunks, connections, heads, hosts, no_http, paths
from hostile_requests import NOTHING, Hostile
from serving import Served, received_until_end

KINDS = (no_http, heads, hosts, paths, chunks, connections, bodies, values, texts, schemas, pictures, pages)
CLIENTS = 8
PATIENCE = 60.0  # seconds: who is not answered by then hangs
PAUSE = 0.002


def send(port: int, hostile: Hostile) -> int:
    """The status of the answer. Raises TimeoutError where the service neither answers nor hangs up."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in hostile.sent:
                connection.sendall(piece)
                time.sleep(PAUSE if len(hostile.sent) > 1 else 0)
            if hostile.half_closed:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the service has had enough
        if hostile.leaves:
            return NOTHING
        answer = b"".join(received_until_end(connection))
    return int(answer.split(b" ", 2)[1]) if answer else NOTHING


def held(service: Served) -> tuple[int, int]:
    """The file descriptors and the threads of a service that has nothing to do."""
    end = time.monotonic() + PATIENCE
    while "vlmkit_requests_running 1.0" not in service.get("/metrics").text:  # this one alone
        assert time.monotonic() < end
        time.sleep(0.05)
    process = Path("/proc", str(service.process.pid))
    return len(os.listdir(process / "fd")), len(os.listdir(process / "task"))


@pytest.mark.slow
def test_hostile_requests_do_no_harm(served: Served) -> None:
    table = [each for kind in KINDS for each in kind()]
    assert len(table) >= 200
    states = []
    for _ in range(2):  # the first time models are loaded and pools start their threads
        with ThreadPoolExecutor(CLIENTS) as clients:
            statuses = list(clients.map(lambda each: send(served.port, each), table))
        assert [(each.name, got) for each, got in zip(table, statuses, strict=True) if got not in each.statuses] == []
        states.append(held(served))
    (files, threads), (files_after, threads_after) = states
    assert files_after <= files + 2 and threads_after <= threads + 2  # not one for each of so many requests
    said = served.said()
    assert "Traceback" not in said and "a request failed" not in said and said.count("\n") == 1, said
    assert not re.search(r'status="5\d\d"', served.get("/metrics").text)
    assert len(served.ask("/v1/embeddings", input="a cat")["data"]) == 1
