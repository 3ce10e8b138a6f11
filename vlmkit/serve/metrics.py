"""What the service tells Prometheus."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import Scope

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts of one service; `paths` are those that it counts each for itself."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, paths: Collection[str] = ()) -> None:
        self.paths = frozenset(paths)
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def made(kind: Any, name: str, what: str, *labels: str, **more: Any) -> Any:
            return kind(f"vlmkit_{name}", what, labels, registry=registry, **more)

        self._requests = made(Counter, "requests", "Requests, by status.", "method", "path", "status")
        self._seconds = made(
            Histogram, "request_seconds", "Time to the end of a request.", "method", "path", buckets=SECONDS
        )
        self._running = made(Gauge, "requests_running", "Requests that wait or run.")
        self.waiting = made(Gauge, "queue_items", "Texts, pictures and questions that wait for a model.", "model")
        self.batch = made(Histogram, "batch_items", "Items that a model took at once.", "model", buckets=SIZES)
        self.busy = made(Counter, "model_seconds", "Time in which a model was busy.", "model")
        self.tokens = made(Counter, "tokens", "Tokens read and generated.", "model", "kind")
        self.loaded = made(Gauge, "model_loaded", "1 while the model is in memory.", "model", "task")
        self.records = made(Gauge, "index_records", "Records in the index.")

    @contextmanager
    def request(self, scope: Scope) -> Iterator[Callable[[int], None]]:
        """Count a request; the status is passed to what this gives."""
        path = scope["path"] if scope["path"] in self.paths else "other"
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        start, statuses = time.perf_counter(), [499]
        self._running.inc()
        try:
            yield statuses.append
        finally:
            self._running.dec()
            self._requests.labels(method, path, statuses[-1]).inc()
            self._seconds.labels(method, path).observe(time.perf_counter() - start)

    def text(self) -> bytes:
        return generate_latest(self._registry)
