"""Shards by URL as INPUT: read as they come, by servers that have bad days and by fsspec, and never half."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Faulty, serving
from helpers import jpeg, records, tar

from vlmkit.errors import VlmkitError
from vlmkit.io import http
from vlmkit.io.inputs import Item, read_inputs
from vlmkit.io.passing import PassingSamples
from vlmkit.io.reading import Reading
from vlmkit.io.samples import Sample, Unread, read_samples
from vlmkit.io.shards import expand_shards, output_names
from vlmkit.io.sources import PictureError, open_file, shard_reader
from vlmkit.io.stream import KEPT, ForwardFile
from vlmkit.io.tar import TarReader


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """Three shards of two pictures with captions, which also lie in the folder `here`."""
    monkeypatch.setattr(http, "FIRST_PAUSE", 0.01)
    (tmp_path / "here").mkdir()
    with serving() as running:
        for shard in range(3):
            members: dict[str, bytes] = {}
            for number in range(2):
                members[f"{number}.jpg"] = jpeg(f"rgb({80 * shard},{90 * number},9)", (300, 200))
                members[f"{number}.txt"] = f"picture {number} of {shard}".encode()
            members["readme.psd"] = b"8BPS"
            name = f"x-{shard:02}.tar"
            running.files[f"/{name}"] = tar(tmp_path / "here" / name, members).read_bytes()
        yield running


def same(there: bytes, here: bytes, server: Faulty, folder: Path) -> None:
    """The records are the same but for names, and for when a file here was changed."""
    expected = [{k: v for k, v in row.items() if k != "ctime"} for row in records(here)]
    assert records(there.replace(server.base.encode(), str(folder).encode())) == expected and expected


@pytest.mark.parametrize("words", [["embed"], ["caption"], ["ask", "is it red?"]])
def test_as_shards_that_are_here(vlmkit, server: Faulty, tmp_path: Path, words: list[str]) -> None:
    command, *question = words
    here = vlmkit(command, *sorted(tmp_path.glob("here/*")), *question).stdout
    url = f"{server.base}/x-{{00..02}}.tar"
    same(vlmkit(command, "--allow-private", url, *question).stdout, here, server, tmp_path / "here")
    vlmkit(command, "--allow-private", url, *question, "--out-dir", "out")
    made = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("out/x-0*.jsonl")))
    same(made, here, server, tmp_path / "here")
    assert b"which is not public; --allow-private allows it" in vlmkit(command, url, *question, code=3).stderr


@pytest.mark.parametrize("fault", ["500", "cut", "no-ranges", "chunked", "wrong-length"])
def test_faults_that_pass(vlmkit, server: Faulty, tmp_path: Path, fault: str) -> None:
    server.faults["/x-01.tar"] = fault, 2
    here = vlmkit("embed", "here/x-01.tar").stdout
    same(vlmkit("embed", "--allow-private", f"{server.base}/x-01.tar").stdout, here, server, tmp_path / "here")


def test_a_cut_goes_on_where_it_was(server: Faulty) -> None:
    """What came is not sent again, where a server sends parts; where not, it is skipped."""
    path, size = "/x-00.tar", len(server.files["/x-00.tar"])
    server.faults[path] = "cut", 1
    assert len(list(read_inputs([server.base + path], Reading(allow_private=True)))) == 2
    assert server.sent[path] == size and server.hits[path] == 2


def test_shards_that_fail_are_told_and_retried(vlmkit, server: Faulty, tmp_path: Path) -> None:
    whole, gone = server.files["/x-01.tar"], server.files.pop("/x-00.tar")
    server.files["/x-01.tar"] = whole[: whole.index(b"1.jpg")]
    server.faults["/x-02.tar"] = "500", 99
    words = ("embed", "--allow-private", f"{server.base}/x-{{00..02}}.tar", "--out-dir", "out")
    said = vlmkit(*words, code=3).stderr.decode()
    assert "x-00.tar: HTTP 404 Not Found" in said and "x-01.tar: damaged tar file" in said
    assert "x-02.tar: HTTP 500" in said and "(6 tries)" in said and "shards that failed: 3" in said
    assert not list(tmp_path.glob("out/x-0?.jsonl"))
    server.files |= {"/x-00.tar": gone, "/x-01.tar": whole}
    server.faults.clear()
    assert b"all is done: 3 shards, 6 written, 0 failed" in vlmkit(*words).stderr


def test_a_file_that_changes_while_it_is_read(server: Faulty) -> None:
    from vlmkit.io.http import HttpClient
    from vlmkit.io.remote import WholeFile

    server.faults["/x-00.tar"] = "cut", 1
    with HttpClient(allow_private=True) as client:
        pieces = WholeFile(client, f"{server.base}/x-00.tar").pieces()
        next(pieces)
        server.files["/x-00.tar"] = server.files["/x-01.tar"]
        with pytest.raises(PictureError, match="changed on the server while it was read"):
            list(pieces)


def test_members_come_before_the_rest_is_there(server: Faulty, tmp_path: Path) -> None:
    """The server stops in the middle: what stands before was read."""
    members = {f"{number}.jpg": os.urandom(400_000) for number in range(8)}
    server.files["/big.tar"] = tar(tmp_path / "big.tar", members).read_bytes()
    server.faults["/big.tar"] = "stall", 1
    found = read_inputs([f"{server.base}/big.tar"], Reading(allow_private=True))
    for number in range(2):
        item = next(found)
        assert isinstance(item, Item) and item.locate().read() == members[f"{number}.jpg"]
    server.over.set()
    found.close()


def test_keys_in_a_query_are_in_no_record(server: Faulty) -> None:
    first, _ = read_inputs([f"{server.base}/x-00.tar?signature=a/b.c"], Reading(allow_private=True))
    assert isinstance(first, Item) and first.record["id"] == f"{server.base}/x-00.tar/0.jpg"
    assert output_names(["https://a/x.tar?sig=b/c.d", "https://a/y.tar"]) == {
        "https://a/x.tar?sig=b/c.d": "x",
        "https://a/y.tar": "y",
    }


def read_both(file: Path) -> tuple[list, list]:
    """What is read of a tar here, and of one that comes: names, contents and fields."""
    reader = TarReader()
    size = file.stat().st_size
    with file.open("rb") as stream:
        pieces = iter(lambda: stream.read(1000), b"")
        passing = list(PassingSamples().read("t.tar", reader, ForwardFile(pieces, size), 0, size))
    return plain(read_samples("t.tar", reader, open_file(str(file)))), plain(passing)


def plain(found: Iterator[Sample | Unread] | list) -> list:
    def read(one: Sample | Unread) -> tuple:
        if isinstance(one, Unread):
            return one
        try:
            return one.path, one.source.read(), one.fields()
        except PictureError as error:
            return one.path, str(error), one.fields()

    return [read(one) for one in found]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_that_come_are_read_as_those_that_are_here(tmp_path: Path, form: int) -> None:
    inner = tar(tmp_path / "inner.tar", {"z.jpg": jpeg("blue"), "z.json": b'{"a": 1}'}).read_bytes()
    members = {"b.json": b'{"k": [1]}', "b.jpg": jpeg(), "c/d.png": b"no", "c/d.txt": b"text", "x.tar": inner}
    members |= {"f/" + "long" * (30 if form != tarfile.USTAR_FORMAT else 10) + ".jpg": jpeg("red"), ".hidden.jpg": b"1"}
    with tarfile.open(tmp_path / "t.tar", "w", format=form) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    here, there = read_both(tmp_path / "t.tar")
    assert here == there and len(here) == 4
    whole = (tmp_path / "t.tar").read_bytes()
    for cut in range(512, len(whole), 1500):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        here, there = read_both(tmp_path / "cut.tar")
        assert here == there, cut
    at = whole.index(b"c/d.png")
    (tmp_path / "bad.tar").write_bytes(whole[:at] + b"\xff" * 512 + whole[at + 512 :])
    here, there = read_both(tmp_path / "bad.tar")
    assert here == there and isinstance(there[-1], Unread)


def test_what_only_a_tar_that_is_here_gives_is_told(tmp_path: Path) -> None:
    apart = tar(tmp_path / "a.tar", {"a.jpg": jpeg(), "b.jpg": jpeg(), "a.txt": b"far away"})
    *_, last = read_both(apart)[1]
    assert isinstance(last, Unread) and "the members of a do not stand together" in last.error
    with tarfile.open(tmp_path / "l.tar", "w") as file:
        info = tarfile.TarInfo("l.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "x.jpg"
        file.addfile(info)
    assert "a link, which is not followed" in read_both(tmp_path / "l.tar")[1][0][1]


def test_little_of_a_file_that_comes_is_held() -> None:
    data = os.urandom(1 << 20)
    file = ForwardFile(iter([data] * 40), 40 << 20)
    for at in range(0, 40 << 20, 3 << 20):
        file.seek(at)
        assert file.read(1000) == data[at % (1 << 20) :][:1000] and len(file._held) <= 3 * KEPT
    with pytest.raises(OSError):
        file.seek(0)
        file.read(1)


def test_by_fsspec(vlmkit, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec: pip install 'vlmkit[fsspec]'")
    files = fsspec.filesystem("memory")
    for number in range(3):
        shard = tar(tmp_path / f"x-{number}.tar", {"a.jpg": jpeg(f"rgb({90 * number},0,0)"), "a.txt": b"one"})
        files.pipe(f"/s/x-{number}.tar", shard.read_bytes())
    here = records(vlmkit("embed", *(f"x-{number}.tar" for number in range(3))).stdout)
    for names in (["memory://s/x-{0..2}.tar"], ["memory:///s/x-*.tar"], [f"file://{tmp_path}/x-{{0..2}}.tar"]):
        vlmkit("embed", *names, "--out-dir", f"out-{len(names[0])}")
        made = records(b"".join(p.read_bytes() for p in sorted(tmp_path.glob(f"out-{len(names[0])}/x-*.jsonl"))))
        assert [row["embedding"] for row in made] == [row["embedding"] for row in here] and len(made) == 3
        assert [row["captions"] for row in made] == [["one"]] * 3
    assert made[0]["id"] == f"file://{tmp_path}/x-0.tar/a.jpg"
    assert len(vlmkit("embed", "memory://s/x-{0..1}.tar").stdout.splitlines()) == 2
    assert b"no such file" in vlmkit("embed", "memory://s/x-{2..3}.tar", code=3).stderr
    assert b"no shard is called" in vlmkit("embed", "memory://s/y-*.tar", "--out-dir", "o", code=2).stderr
    files.rm("/s", recursive=True)


def test_what_cannot_be_opened_is_told_at_once(vlmkit) -> None:
    assert b"Protocol not known: foo" in vlmkit("embed", "foo://a/b.tar", code=2).stderr
    assert b"of others shards (.tar)" in vlmkit("embed", "s3://a/b.jpg", code=2).stderr
    assert shard_reader("https://a/b.jpg") is None and shard_reader("b.tar") is None
    with pytest.raises(VlmkitError, match="Protocol not known"):
        expand_shards(["foo://a/*.tar"])


@pytest.mark.slow
def test_by_s3(vlmkit, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server", reason="needs a small S3: pip install 'moto[server]' s3fs")
    pytest.importorskip("s3fs", reason="needs s3fs: pip install s3fs")
    import boto3

    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    keys["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    environment |= keys
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    store = boto3.client("s3")
    store.create_bucket(Bucket="bucket")
    for number in range(2):
        store.upload_file(str(tar(tmp_path / "x.tar", {"a.jpg": jpeg()})), "bucket", f"x-{number}.tar")
    done = vlmkit("embed", "s3://bucket/x-*.tar", "--out-dir", "out")
    assert b"all is done: 2 shards, 2 written" in done.stderr
    server.stop()
