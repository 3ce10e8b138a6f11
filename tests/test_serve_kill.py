"""serve: SIGKILL in the middle of its work, and a restart over the same folders."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx2
import inside
import pytest
from conftest import own_environment
from serving import Served

SECONDS = 60.0


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def thumbnails(environment: dict[str, str]) -> list[Path]:
    return [path for path in Path(environment["XDG_CACHE_HOME"]).rglob("*") if path.is_file() and path.suffix != ".log"]


@pytest.mark.slow
def test_sigkill_and_a_restart_lose_nothing(photos: Path, photo_rows: bytes, tmp_path: Path) -> None:
    """Killed while embeddings are made, the index is searched and changed, and thumbnails are written."""
    environment = own_environment(tmp_path / "home")
    first, *rest = photo_rows.splitlines(keepends=True)
    inside.run(["index"], tmp_path, environment, b"".join(rest))
    service = Served(tmp_path, environment)
    before = service.ask("/v1/search", query="a cup of coffee", k=50)["data"]
    pictures = [quote(record["image"], safe="") for record in before]
    outcomes: list[str] = []

    def keep(name: str, ask: Callable[[httpx2.Client], httpx2.Response]) -> None:
        """Ask again and again, until nobody answers."""
        with httpx2.Client(base_url=service.url, timeout=SECONDS) as client:
            try:
                while ask(client).status_code == 200:
                    pass
            except httpx2.TransportError:
                outcomes.append(name)  # in the middle of a request

    texts = {"input": [f"a cat and {i} dogs" for i in range(500)]}
    kinds: dict[str, Callable[[httpx2.Client], httpx2.Response]] = {
        "embed": lambda client: client.post("/v1/embeddings", json=texts),
        "search": lambda client: client.post("/v1/search", json={"query": "a cat", "k": 50}),
        "thumbnails": lambda client: [client.get(f"/large?id={key}") for key in pictures][-1],
    }
    threads = [threading.Thread(target=keep, args=each) for each in kinds.items()]
    for thread in threads:
        thread.start()
    inside.run(["index"], tmp_path, environment, first)  # the index changes under the service
    until(lambda: 0 < len(thumbnails(environment)) < len(pictures))  # some are written, others are not yet
    service.process.kill()
    service.client.close()
    for thread in threads:
        thread.join(SECONDS)
    assert service.process.wait() == -9 and "embed" in outcomes, outcomes
    assert len(thumbnails(environment)) < len(pictures)

    inside.run(["index", "--verify"], tmp_path, environment, b"")
    again = Served(tmp_path, environment)
    after = again.ask("/v1/search", query="a cup of coffee", k=50)["data"]
    assert len(after) == len(before) + 1 and {r["id"] for r in before} < {r["id"] for r in after}
    for key in pictures:
        picture = again.get(f"/large?id={key}")
        assert picture.status_code == 200 and picture.content.endswith(b"\xff\xd9")  # whole
    again.end()
