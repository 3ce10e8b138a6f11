"""What vlmkit asks of a Qdrant server, answered over HTTP by the engine of Qdrant's client, in memory."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models

NAME = "photos"


class QdrantServer(ThreadingHTTPServer):
    """Requests need `key`, where one is set; `asked` are their methods, paths and bodies. Of the requests that put
    points in it answers `left`, the others with 503.
    """

    daemon_threads = True

    def __init__(self, key: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.client = QdrantClient(":memory:", force_disable_check_same_thread=True)
        self.lock = threading.Lock()
        self.key, self.left = key, 1000
        self.asked: list[tuple[str, str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "QdrantServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self.client.close()

    def answer(self, method: str, path: str, body: Any) -> Any:
        client = self.client
        match method, path.partition("?")[0].removeprefix(f"/collections/{NAME}"):
            case "GET", "/collections":
                return client.get_collections()
            case "GET", "/exists":
                return models.CollectionExistence(exists=client.collection_exists(NAME))
            case "GET", "":
                return client.get_collection(NAME)
            case "PUT", "":
                asked = models.CreateCollection(**body)
                return client.create_collection(NAME, vectors_config=asked.vectors, metadata=asked.metadata)
            case "PUT", "/points":
                batch = models.Batch(**body["batch"])
                return client.upsert(NAME, points=batch)
            case "POST", "/points":
                return client.retrieve(NAME, body["ids"], body["with_payload"], body["with_vector"])
            case "POST", "/points/count":
                asked = models.CountRequest(**body)
                return client.count(NAME, asked.filter)
            case "POST", "/points/scroll":
                asked = models.ScrollRequest(**body)
                how = {"with_payload": asked.with_payload, "with_vectors": asked.with_vector}
                points, offset = client.scroll(NAME, asked.filter, limit=asked.limit, offset=asked.offset, **how)
                return models.ScrollResult(points=points, next_page_offset=offset)
            case "POST", "/points/query/batch":
                requests = models.QueryRequestBatch(**body).searches
                for request in requests:
                    request.params = None  # which that engine warns of
                return client.query_batch_points(NAME, requests)
        return None


class _Handler(BaseHTTPRequestHandler):
    server: QdrantServer
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.loads(data) if data else None
        if self.server.key and self.headers.get("api-key") != self.server.key:
            return self._send(403, {"status": {"error": "forbidden"}})
        self.server.left -= self.command == "PUT" and "/points" in self.path
        if self.server.left < 0:
            return self._send(503, {"status": {"error": "overloaded"}})
        with self.server.lock:
            self.server.asked.append((self.command, self.path, body))
            found = self.server.answer(self.command, self.path, body)
        if found is None:
            return self._send(404, {"status": {"error": "Not found"}})
        plain = [each.model_dump(mode="json") for each in found] if isinstance(found, list) else found
        result = plain.model_dump(mode="json") if hasattr(plain, "model_dump") else plain
        return self._send(200, {"result": result, "status": "ok", "time": 0.0})

    do_GET = do_PUT = do_POST = _any

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
