"""DATA by URL: webdataset shards that are read from a server, which has bad days."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Faulty, serving
from helpers import jpeg, tar

from vlmkit.errors import VlmkitError
from vlmkit.io import http, remote
from vlmkit.io.http import FetchError
from vlmkit.io.shards import expand_braces
from vlmkit.io.terminal import Failures
from vlmkit.train.config import ContrastiveConfig
from vlmkit.train.contrastive.run import train
from vlmkit.train.data.dataset import read_data
from vlmkit.train.data.mixture import Mixture
from vlmkit.train.data.samples import parse_captioned

SHARDS = "x-{000000..000002}.tar"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """Three shards of four pictures, which also lie in a folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.01)
    with serving() as running:
        for shard in range(3):
            members: dict[str, bytes] = {}
            for number in range(4 * shard, 4 * shard + 4):
                members[f"{number}.jpg"] = jpeg("red", (40 + number, 30))
                members[f"{number}.txt"] = f"picture {number}".encode()
            name = f"x-{shard:06}.tar"
            running.files[f"/{name}"] = tar(tmp_path / name, members).read_bytes()
        yield running
        remote.close_clients()


def read(data: object) -> tuple[Mixture, Failures]:
    with Failures() as failures:
        return read_data([str(data)], parse_captioned, failures=failures), failures


def captions(found: Mixture) -> list[str]:
    return [row.captions[0] for row in found.rows]


def test_names_with_braces(tmp_path: Path) -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{b,c}{2..1}") == ["b2", "b1", "c2", "c1"]
    assert expand_braces("a{b}{}") == ["a{b}{}"]
    (tmp_path / "{1,2}").touch()
    assert expand_braces(str(tmp_path / "{1,2}")) == [str(tmp_path / "{1,2}")]
    with pytest.raises(VlmkitError, match="more than 1,000,000 shards"):
        expand_braces("x{0000000..1000000}")


def test_shards_are_read_as_if_they_were_here(server: Faulty, tmp_path: Path) -> None:
    here, _ = read(tmp_path / SHARDS)
    there, failures = read(f"2:{server.base}/{SHARDS}")
    assert captions(there) == captions(here) == [f"picture {n}" for n in range(12)] and not failures.count
    assert [row.picture.read() for row in there.rows] == [row.picture.read() for row in here.rows]
    assert there.rows[0].id == f"{server.base}/x-000000.tar/0.jpg"
    sent = server.sent.copy()
    again, _ = read(f"{server.base}/{SHARDS}")
    assert list(again.rows) == list(there.rows)
    assert sum((server.sent - sent).values()) == 3, "a byte of each shard, to see that it is the same"
    assert not list((tmp_path / "cache").rglob("*.tar")) and not list((tmp_path / "cache").rglob("*.jpg"))


@pytest.mark.parametrize("fault", ["500", "cut", "wrong-length"])
def test_faults_that_pass(server: Faulty, fault: str) -> None:
    server.faults["/x-000001.tar"] = fault, 2
    found, failures = read(f"{server.base}/{SHARDS}")
    assert captions(found) == [f"picture {n}" for n in range(12)] and not failures.count


def test_shards_that_do_not_come_are_told_and_asked_for_again(server: Faulty, capfd: pytest.CaptureFixture) -> None:
    whole = server.files["/x-000001.tar"]
    gone = server.files.pop("/x-000000.tar")
    server.files["/x-000001.tar"] = whole[: whole.index(b"6.jpg")]
    server.faults["/x-000002.tar"] = "500", 99
    found, failures = read(f"{server.base}/{SHARDS}")
    said = capfd.readouterr().err
    assert f"{server.base}/x-000000.tar: HTTP 404 Not Found: left out, check the address" in said
    assert f"{server.base}/x-000001.tar: damaged tar file" in said and "its other members were read" in said
    assert f"{server.base}/x-000002.tar: HTTP 500" in said and failures.count == 3
    assert found.table[0].reasons == {"unreadable shard": 3} and captions(found) == ["picture 4", "picture 5"]
    server.faults.clear()
    server.files |= {"/x-000000.tar": gone, "/x-000001.tar": whole}
    assert captions(read(f"{server.base}/{SHARDS}")[0]) == [f"picture {n}" for n in range(12)]


def test_a_server_without_ranges_is_told(server: Faulty, capfd: pytest.CaptureFixture) -> None:
    server.faults |= dict.fromkeys(server.files, ("no-ranges", 99))
    with pytest.raises(VlmkitError, match=r"nothing in .* can be used"):
        read(f"{server.base}/{SHARDS}")
    assert "sends whole files only, no parts of them (HTTP ranges): left out" in capfd.readouterr().err


def test_a_silent_server_and_another_version(server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = read(f"{server.base}/{SHARDS}")
    picture = found.rows[0].picture
    server.faults["/x-000000.tar"] = "stall", 99
    monkeypatch.setattr(http.HttpClient, "_connect", _quickly(http.HttpClient._connect))
    remote.close_clients()
    monkeypatch.setattr(remote, "TRIES", 2)
    with pytest.raises(FetchError, match=r"the server is too slow \(2 tries\)"):
        picture.read()
    server.faults.clear()
    server.files["/x-000000.tar"] += bytes(512)
    with pytest.raises(FetchError, match="changed on the server since it was first read"):
        picture.read()


def _quickly(connect):
    def with_less_time(client: http.HttpClient):
        client.timeout = 0.1
        return connect(client)

    return with_less_time


@pytest.mark.slow
def test_training_on_them_ends_in_the_same_bytes(server: Faulty, tmp_path: Path) -> None:
    """Read by two processes, with pictures that come at the third try alone, or by this one from the disk."""

    def emit(record: dict) -> None:
        if record["step"] == 1:
            server.faults["/x-000001.tar"] = "cut", 2

    for name, data, workers in (("there", server.base, 2), ("here", tmp_path, 0)):
        some = {"batch_size": 4, "steps": 16, "augmentations": 3, "lr": 1e-3, "workers": workers, "save_steps": 99}
        train(ContrastiveConfig(data=[f"{data}/{SHARDS}"], out=tmp_path / name, start="tiny", **some), emit)
    assert (tmp_path / "there/model.safetensors").read_bytes() == (tmp_path / "here/model.safetensors").read_bytes()
