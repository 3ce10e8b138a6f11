"""How many requests a service answers, by 32 clients at once and one by one, and whether its memory stays flat:

python tests/benchmarks/serve.py                 # throughput: embeddings of short texts, each request one
python tests/benchmarks/serve.py soak [20000]    # requests of all kinds, right and wrong, by 8 clients
"""

import http.client
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CLIENTS = 32
SECONDS = 15
SUBJECTS = ["a red car", "two dogs", "an old man", "a small boat", "three cats", "a green bird", "a white horse"]
PLACES = ["on the street", "in the snow", "at the beach", "under a tree", "near the house", "on a table", "in the city"]
TEXTS = [f"{one} {place}" for one, place in itertools.product(SUBJECTS, PLACES)]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)


@contextmanager
def service(*arguments: str) -> Iterator[tuple[int, int]]:
    """The port and the process of a running service."""
    with tempfile.TemporaryDirectory() as home:
        words = [sys.executable, "-m", "vlmkit", "serve", "--port", "0", *arguments]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | {"XDG_DATA_HOME": home})
        assert process.stderr
        port = int(re.search(r"http://[\d.]+:(\d+)", process.stderr.readline())[1])
        try:
            yield port, process.pid
        finally:
            process.terminate()
            process.wait()


class Client:
    """A connection that stays open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def post(self, path: str, body: bytes) -> int:
        self._connection.request("POST", path, body)
        response = self._connection.getresponse()
        response.read()
        if response.will_close:
            self._connection.close()
        return response.status


def at_once(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def rate(port: int, clients: int) -> tuple[float, list[float]]:
    """Requests a second, and the milliseconds of each, in order."""
    numbers, times = itertools.count(), []
    end = time.perf_counter() + SECONDS

    def ask() -> None:
        client = Client(port)
        while (start := time.perf_counter()) < end:
            body = json.dumps({"input": TEXTS[next(numbers) % len(TEXTS)], "encoding_format": "base64"}).encode()
            assert client.post("/v1/embeddings", body) == 200
            times.append(1000 * (time.perf_counter() - start))

    begin = time.perf_counter()
    at_once(clients, ask)
    return len(times) / (time.perf_counter() - begin), sorted(times)


def throughput() -> None:
    ratios = []
    with service() as (port, _):
        Client(port).post("/v1/embeddings", b'{"input": "a"}')  # loads the model
        for _ in range(3):
            rates = {}
            for clients in (1, CLIENTS):
                rates[clients], times = rate(port, clients)
                p50, p95 = (times[int(len(times) * share)] for share in (0.5, 0.95))
                print(
                    f"{clients:2} clients: {rates[clients]:.0f} requests a second, p50 {p50:.0f} ms, p95 {p95:.0f} ms"
                )
            ratios.append(rates[CLIENTS] / rates[1])
    print(f"{CLIENTS} clients to one: {statistics.median(ratios):.2f} times, median of {len(ratios)}")


def soak(requests: int) -> None:
    picture = {"type": "image_url", "image_url": {"url": PIXEL}}
    question = [{"role": "user", "content": [picture, {"type": "text", "text": "what is this?"}]}]
    kinds = [
        ("/v1/embeddings", {"input": ["a cat", "a dog"]}),
        ("/v1/embeddings", {"input": [{"image": PIXEL}]}),
        ("/v1/embeddings", {"input": [{"image": "/etc/passwd"}]}),
        ("/v1/chat/completions", {"messages": question, "max_tokens": 4}),
        ("/v1/chat/completions", {"messages": question, "max_tokens": 4, "stream": True}),
        ("/v1/classify", {"input": [PIXEL], "labels": ["a", "b"]}),
        ("/v1/search", {"query": "a cat"}),
        ("/v1/nothing", {"a": "b" * 10_000}),
    ]
    bodies = [(path, json.dumps(body).encode()) for path, body in kinds]
    with service() as (port, pid):
        numbers, memory, start = itertools.count(), [], time.perf_counter()
        lock = threading.Lock()

        def ask() -> None:
            client = Client(port)
            while (number := next(numbers)) < requests:
                status = client.post(*bodies[number % len(bodies)])
                assert status in (200, 400, 404), status
                with lock:
                    if number % (requests // 20) == 0:
                        memory.append((number, resident(pid)))

        at_once(8, ask)
        took = time.perf_counter() - start
    for number, mb in memory:
        print(f"{number:6} requests: {mb:.0f} MB")
    warm = [mb for number, mb in memory if number >= requests // 4]
    change = 100 * (warm[-1] / warm[0] - 1)
    print(f"{requests} requests in {took:.0f} s; memory from a quarter of them to the end: {change:+.1f}%")


def resident(pid: int) -> float:
    """Megabytes of a process in memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    if sys.argv[1:2] == ["soak"]:
        soak(int(sys.argv[2]) if len(sys.argv) > 2 else 20_000)
    else:
        throughput()
