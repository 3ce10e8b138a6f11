"""One file from a server that behaves, and from one that does not."""

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Faulty, serving

from vlmkit.download.fetch import RANGE_BYTES, PartialFile, Version, fetch
from vlmkit.download.store import at_mirror
from vlmkit.io.http import FetchError, HttpClient

MIB = 1 << 20
SMALL = random.Random(1).randbytes(700_001)
LARGE = random.Random(2).randbytes(2 * RANGE_BYTES + 12_345)


@pytest.fixture(autouse=True)
def _directly_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmkit.io.http.FIRST_PAUSE", 0.01)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Faulty]:
    with serving() as faulty:
        faulty.files |= {"/small": SMALL, "/large": LARGE, "/empty": b""}
        yield faulty


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with HttpClient(allow_private=True, timeout=1.0) as made:
        yield made


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Progress(list):
    """What was reported: (bytes that have arrived, bytes of the file or None)."""

    def __call__(self, arrived: int, size: int | None) -> None:
        self.append((arrived, size))


@pytest.mark.parametrize("fault", ["none", "cut", "stall", "429", "500", "503", "no-ranges", "chunked", "drip"])
def test_what_passes_does_no_harm(tmp_path: Path, server: Faulty, client: HttpClient, fault: str) -> None:
    """Each fault comes twice, which is less than there are tries; every byte arrives, and is reported."""
    server.faults["/small"] = (fault, 2)
    reported = Progress()
    digest = fetch(f"{server.base}/small", tmp_path / "small", client, on_progress=reported)
    assert (tmp_path / "small").read_bytes() == SMALL
    assert digest == hashlib.sha256(SMALL).hexdigest()
    assert reported[-1][0] == len(SMALL) and {size for _, size in reported} == {len(SMALL)}
    assert only(tmp_path) == ["small"]


def test_parts_come_at_the_same_time(tmp_path: Path, server: Faulty, client: HttpClient) -> None:
    server.slow = 0.002
    reported = Progress()
    fetch(f"{server.base}/large", tmp_path / "large", client, size=len(LARGE), on_progress=reported)
    assert (tmp_path / "large").read_bytes() == LARGE
    # Three ranges; the server may still be busy with the end of the answer that sent the size.
    assert (
        server.most["/large"] in (3, 4)
        and server.hits["/large"] == 4
        and reported == sorted(reported)
        and reported[-1] == (len(LARGE), len(LARGE))
    )
    assert server.sent["/large"] == len(LARGE) + 1  # the one that asked for the size


def test_an_empty_file(tmp_path: Path, server: Faulty, client: HttpClient) -> None:
    fetch(f"{server.base}/empty", tmp_path / "empty", client)
    assert (tmp_path / "empty").read_bytes() == b"" and only(tmp_path) == ["empty"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("cut", "without sending complete"),
        ("stall", "too slow"),
        ("drip", "too slow"),
        ("500", r"HTTP 500 .*\(4 tries\)"),
        ("loop", "more than 5 redirects"),
        ("wrong-length", "7"),
        ("flipped", "wrong SHA256"),
    ],
)
def test_what_stays_wrong_is_named(tmp_path: Path, server: Faulty, client: HttpClient, fault: str, reason: str) -> None:
    server.faults["/small"] = (fault, 99)
    url, path = f"{server.base}/small", tmp_path / "small"
    known = {"size": len(SMALL), "digest": f"sha256:{hashlib.sha256(SMALL).hexdigest()}"}
    start = time.monotonic()
    with pytest.raises(FetchError, match=reason):
        fetch(url, path, client, **known)
    assert time.monotonic() - start < 20 and not path.exists()
    server.faults.clear()
    fetch(url, path, client, **known)
    assert path.read_bytes() == SMALL and only(tmp_path) == ["small"]


def test_what_was_cut_off_is_taken_up(tmp_path: Path, server: Faulty, client: HttpClient) -> None:
    """Half of it, then failure; the next run asks for the rest alone."""
    with PartialFile(tmp_path / "large") as part:
        etag = f'"{hashlib.sha256(LARGE).hexdigest()[:16]}"'
        part.begin(Version(len(LARGE), etag))
        part.write(0, LARGE[: 3 * MIB])
        part.write(10 * MIB, LARGE[10 * MIB : 20 * MIB])
    with open(tmp_path / ".large.part.jsonl", "ab") as notes:
        notes.write(b"[209715")  # torn by a kill, before another run noted more
        notes.write(b"\n[%d,%d]\n" % (20 * MIB, 21 * MIB))
    with open(tmp_path / ".large.part", "r+b") as file:
        file.seek(20 * MIB)
        file.write(LARGE[20 * MIB : 21 * MIB])
    reported = Progress()
    fetch(f"{server.base}/large", tmp_path / "large", client, on_progress=reported)
    assert (tmp_path / "large").read_bytes() == LARGE and only(tmp_path) == ["large"]
    assert server.sent["/large"] == len(LARGE) - 14 * MIB
    assert min(reported)[0] > 14 * MIB and reported[-1] == (len(LARGE), len(LARGE))


def test_a_journal_without_its_file_is_not_believed(tmp_path: Path, server: Faulty, client: HttpClient) -> None:
    with PartialFile(tmp_path / "large") as part:
        part.begin(Version(len(LARGE), f'"{hashlib.sha256(LARGE).hexdigest()[:16]}"'))
        part.write(0, LARGE[: 3 * MIB])
    (tmp_path / ".large.part").unlink()
    fetch(f"{server.base}/large", tmp_path / "large", client)
    assert (tmp_path / "large").read_bytes() == LARGE and only(tmp_path) == ["large"]


def test_a_file_that_changed_meanwhile_is_fetched_from_the_beginning(
    tmp_path: Path, server: Faulty, client: HttpClient
) -> None:
    with PartialFile(tmp_path / "large") as part:
        part.begin(Version(len(LARGE), '"of yesterday"'))
        part.write(0, bytes(3 * MIB))
    reported = Progress()
    fetch(f"{server.base}/large", tmp_path / "large", client, on_progress=reported)
    assert (tmp_path / "large").read_bytes() == LARGE and reported[-1] == (len(LARGE), len(LARGE))


def test_a_list_that_knows_better(tmp_path: Path, server: Faulty, client: HttpClient) -> None:
    with pytest.raises(FetchError, match="700,001 bytes, and it should be 5"):
        fetch(f"{server.base}/small", tmp_path / "small", client, size=5)
    with pytest.raises(FetchError, match="wrong MD5"):
        fetch(f"{server.base}/small", tmp_path / "small", client, digest="md5:00")
    fetch(f"{server.base}/small", tmp_path / "x", client, digest=f"md5:{hashlib.md5(SMALL).hexdigest()}")
    assert only(tmp_path) == ["x"]


def test_no_room(tmp_path: Path) -> None:
    with PartialFile(tmp_path / "huge") as part, pytest.raises(FetchError, match="the disk has room for"):
        part.begin(Version(1 << 60, None))
    assert only(tmp_path) == []


def test_missing_and_private(tmp_path: Path, server: Faulty, client: HttpClient) -> None:
    with pytest.raises(FetchError, match="HTTP 404"):
        fetch(f"{server.base}/nothing", tmp_path / "nothing", client)
    with HttpClient() as careful, pytest.raises(FetchError, match="which is not public"):
        fetch(f"{server.base}/small", tmp_path / "small", careful)
    with HttpClient(trusted={"127.0.0.1"}) as named:
        fetch(f"{server.base}/small", tmp_path / "small", named)
    assert only(tmp_path) == ["small"] and server.hits["/nothing"] == 1


def test_two_at_once(tmp_path: Path, server: Faulty, client: HttpClient) -> None:
    """The second fails with a message, and does not disturb the first."""
    server.slow = 0.05
    path = tmp_path / "small"
    first = threading.Thread(target=fetch, args=(f"{server.base}/small", path, client))
    first.start()
    while not server.hits["/small"]:  # by then the first holds its lock
        time.sleep(0.01)
    with pytest.raises(FetchError, match="another run"):
        fetch(f"{server.base}/small", path, client)
    first.join()
    assert path.read_bytes() == SMALL


def test_mirrors() -> None:
    assert at_mirror("http://a.example/b/c.zip?x=1", None) == "http://a.example/b/c.zip?x=1"
    assert at_mirror("http://a.example/b/c.zip?x=1", "https://m.example/") == "https://m.example/b/c.zip?x=1"
    assert at_mirror("http://a.example/b/c.zip", "http://m.example:8/copy") == "http://m.example:8/copy/b/c.zip"
