"""serve: who may ask and how much, and what becomes of requests that are none."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import own_environment
from hosted import Hosted
from hostile_bodies import bomb
from serving import Served, data_uri, received_until_end

PATIENCE = 120.0  # seconds, on a busy machine
POST = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def _settled(number: Callable[[], int]) -> int:
    """The number that stays for longer than an idle connection does here."""
    while True:
        before = number()
        time.sleep(1.2)
        if number() == before:
            return before


def _running(service: Served) -> int:
    """The requests that the service counts as running, with the one that asks for them."""
    return int(float(service.get("/metrics").text.partition("\nvlmkit_requests_running ")[2].split()[0]))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with a token, small limits and one page of another origin that may ask."""
    folder = tmp_path_factory.mktemp("guarded")
    limits = ["--max-body", 1, "--max-queue", 4]
    names = ["--cors", "https://pages.example", "--allow-host", "photos.example"]
    service = Served(folder, own_environment(folder), "--token", "s3cret", *limits, *names)
    service.client.headers["Authorization"] = "Bearer s3cret"
    yield service
    service.end()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1", "10.0.0.1"]
)
def test_another_host_is_misdirected(served: Served, host: str) -> None:
    response = served.get("/health", Host=host)
    assert response.status_code == 421 and response.json()["error"]["code"] == "wrong_host"


def test_its_own_hosts_are_answered(served: Served, guarded: Served) -> None:
    for host in ("localhost", "localhost:1234", "127.0.0.1:80", "[::1]:8000", "LOCALHOST"):
        assert served.get("/health", Host=host).status_code == 200
    assert guarded.get("/health", Host="photos.example").status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://localhost.evil.example", "http://127.0.0.1:1"]
)
def test_a_foreign_origin_is_forbidden(served: Served, origin: str) -> None:
    response = served.post("/v1/embeddings", {"input": "a"}, Origin=origin)
    assert response.status_code == 403 and "access-control-allow-origin" not in response.headers


def test_origins_that_may_ask(served: Served, guarded: Served) -> None:
    assert served.post("/v1/embeddings", {"input": "a"}, Origin=served.url).status_code == 200
    assert served.get("/health", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors").status_code == 403
    assert served.get("/health", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status_code == 200
    named = {"Origin": "https://pages.example"}
    asked = guarded.client.options("/v1/embeddings", headers=named | {"Access-Control-Request-Method": "POST"})
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == named["Origin"]
    answer = guarded.post("/v1/embeddings", {"input": "a"}, **named)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == named["Origin"]


def test_without_the_token_nothing_is_answered(guarded: Served) -> None:
    for said in ("Bearer wrong", "Bearer", "Basic s3cret", "s3cret", "Bearer s3cret2", "Bearer \xe9"):
        response = guarded.client.get("/v1/models", headers={"Authorization": said.encode("latin-1")})
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
    assert guarded.get("/health", Authorization="").status_code == 200
    assert guarded.get("/metrics", Authorization="").status_code == 401
    assert guarded.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/health/../v1/models",
        "/health/..%2fv1/models",
        "/health%2f..%2fv1%2fmodels",
        "//health",
        "/healthy",
        "/health/",
        "/health;/v1/models",
        "/health%00",
        "/health%0a",
        "/HEALTH",
        "/login/../metrics",
        "/login%2e",
        "/static/",
        "/static/../v1/models",
        "/static/..%2f..%2fv1%2fmodels",
        "/static/page.css/../../metrics",
        "//static/page.css",
        "http://127.0.0.1/v1/models",
        "http://127.0.0.1/health/../metrics",
        "*",
    ],
)
def test_paths_that_look_open_need_the_token(guarded: Served, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert guarded.raw(head.encode()).split(b"\r\n")[0].split()[1] in (b"401", b"400")


def test_what_is_open_without_the_token(guarded: Served) -> None:
    for path in ("/health", "/health?a=/v1/models", "/login", "/static/page.css"):
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert guarded.raw(head.encode()).startswith(b"HTTP/1.1 200"), path


@pytest.mark.slow
def test_an_open_address_gets_a_token(tmp_path: Path) -> None:
    service = Served(tmp_path, own_environment(tmp_path), "--host", "0.0.0.0")
    token = service.said().partition("the token is ")[2].split()[0]
    service.client.base_url = f"http://127.0.0.1:{service.port}"
    assert len(token) >= 32
    assert service.get("/v1/models").status_code == 401
    assert service.get("/v1/models", Authorization=f"Bearer {token}").status_code == 200
    assert service.get("/health", Host="192.0.2.7").status_code == 200  # by any of its addresses
    assert service.get("/health", Host="evil.example").status_code == 421
    service.end()


def test_responses_are_for_nobody_else(served: Served) -> None:
    headers = served.get("/v1/nothing").headers
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff" and headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers


@pytest.mark.parametrize(
    "reference",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "../../../etc/passwd",
        "PHOTOS/../photos/coffee.png",
        "file://PHOTOS",
        "\0",
        "a" * 5000,
    ],
)
def test_only_pictures_of_the_index_are_opened(served: Served, photos: Path, reference: str) -> None:
    for picture in (reference.replace("PHOTOS", str(photos)), f"data:text/plain,{reference}"):
        assert served.error(400, "/v1/embeddings", {"input": [{"image": picture}]})["code"] == "invalid_image"


def test_pictures_by_url_come_from_public_addresses_alone(served: Served, tmp_path: Path, hosted: Hosted) -> None:
    for url in (
        hosted.url,
        "http://localhost:1/a.png",
        "http://169.254.169.254/latest",
        "http://[::1]/a.png",
        "http://0/a",
    ):
        error = served.error(400, "/v1/embeddings", {"input": [{"image": url}]})
        assert error["code"] == "invalid_image"
    assert hosted.paths == []


def test_too_many_pixels_are_refused(served: Served) -> None:
    error = served.error(400, "/v1/embeddings", {"input": [{"image": data_uri(bomb(20_000))}]})
    assert "too many pixels" in error["message"]


def test_bodies_have_a_limit(guarded: Served) -> None:
    body = b'{"input": "%s"}' % (b"a" * (1 << 20))
    assert guarded.post("/v1/embeddings", body).status_code == 413
    chunked = guarded.client.post("/v1/embeddings", content=iter([body[:900_000], body[900_000:]]))
    assert chunked.status_code == 413 and chunked.json()["error"]["code"] == "too_large"
    assert guarded.post("/v1/embeddings", {"input": "a"}).status_code == 200


def test_a_full_queue_says_when_to_come_again(guarded: Served) -> None:
    """Four requests whose bodies never end hold all places."""
    held = []
    for _ in range(4):
        connection = socket.create_connection(("127.0.0.1", guarded.port))
        connection.sendall(POST + b"Authorization: Bearer s3cret\r\nContent-Length: 100\r\n\r\n{")
        held.append(connection)
    _until(lambda: "vlmkit_requests_running 5.0" in guarded.get("/metrics").text)  # with this one
    refused = guarded.post("/v1/embeddings", {"input": "a"})
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert guarded.get("/v1/models").status_code == 200  # what costs nothing is answered
    for connection in held:
        connection.close()
    _until(lambda: guarded.post("/v1/embeddings", {"input": "a"}).status_code == 200)


def test_clients_that_go_away_leave_nothing(served: Served, photos: Path) -> None:
    body = b'{"stream": true, "messages": [{"role": "user", "content": "a"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    for i in range(40):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall((head % len(body) + body)[: None if i % 2 else 60 + 4 * i])
    _until(lambda: "vlmkit_requests_running 1.0" in served.get("/metrics").text)  # this one alone
    assert "Traceback" not in served.said()


@pytest.mark.slow
def test_slow_clients_come_to_an_end(tmp_path: Path) -> None:
    """Each would hold its connection for ever; with waits of a second in place of 20 to 60."""
    first = "from vlmkit.serve import limits, server\n"
    first += "limits.HEAD_SECONDS = limits.BODY_SECONDS = limits.READ_SECONDS = server.KEEP_ALIVE = 1"
    service = Served(tmp_path, own_environment(tmp_path), first=first)
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    starts = [b"", b"GET /health HT", health + b"GET /hea", POST + b"Content-Length: 5\r\n\r\n{"]
    connections = [socket.create_connection(("127.0.0.1", service.port), PATIENCE) for _ in starts]
    for connection, start in zip(connections, starts, strict=True):
        connection.sendall(start)
    nothing, no_more, answered, late = (b"".join(received_until_end(connection)) for connection in connections)
    assert nothing == no_more == b"" and answered.startswith(b"HTTP/1.1 200") and answered.count(b"HTTP") == 1
    assert late.startswith(b"HTTP/1.1 408") and b"did not come within" in late

    files = lambda: len(os.listdir(f"/proc/{service.process.pid}/fd"))  # noqa: E731
    before = _settled(files)  # nobody is connected
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as unread:
        with contextlib.suppress(BlockingIOError):
            unread.setblocking(False)
            while True:
                unread.sendall(health.replace(b"health", b"openapi.json") * 100)
        _until(lambda: files() == before + 1)  # it was accepted
        _until(lambda: files() == before)  # nothing was read
    for connection in connections:
        connection.close()
    service.end()


@pytest.mark.slow
def test_sigterm_answers_what_runs(tmp_path: Path) -> None:
    """The model is still being loaded when the signal comes."""
    service = Served(tmp_path, own_environment(tmp_path))
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(service.post("/v1/embeddings", {"input": ["a cat"] * 200}).status_code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    _until(lambda: len(statuses) + _running(service) == 7)  # with the one that asks this
    service.process.terminate()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 6
    assert service.process.wait(60) == 143
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", service.port), 2)
    service.end()


@pytest.mark.slow
def test_what_takes_too_long_is_given_up(tmp_path: Path) -> None:
    """The model takes longer to load; it goes on loading for who asks again."""
    service = Served(tmp_path, own_environment(tmp_path), "--timeout", 0.1)
    try:
        first = service.post("/v1/embeddings", {"input": "a cat"})
        assert first.status_code == 504 and first.json()["error"]["code"] == "timeout"
        _until(lambda: service.post("/v1/embeddings", {"input": "a cat"}).status_code == 200)
    finally:
        service.end()


@pytest.mark.slow
def test_what_does_not_start(vlmkit, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = vlmkit("serve", "--port", taken.getsockname()[1], code=2).stderr.decode()
    assert "cannot listen" in said and said.count("\n") == 1
    assert "nonesuch" in vlmkit("serve", "-m", "./nonesuch", code=2).stderr.decode()
    vlmkit("serve", "--token", " ", code=2)
    vlmkit("serve", "-m", "=mini", code=2)
    code = "import sys; sys.modules['starlette'] = None; from vlmkit.cli.app import main; sys.exit(main(['serve']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"HOME": str(tmp_path)}
    )
    assert done.returncode == 2 and "pip install 'vlmkit[serve]'" in done.stderr
