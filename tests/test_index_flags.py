"""--remove, --prune, --merge and --dump through the installed command."""

import os
import subprocess
from pathlib import Path

import pytest
from helpers import embedded, jpeg, jsonl, picture, records, tar

from vlmkit.index import Index

A, B, C = embedded("a", [1, 0]), embedded("b", [0, 1]), embedded("c", [0.6, 0.8])


def ids(vlmkit, index: str = "./i") -> list[str]:
    return [record["id"] for record in records(vlmkit("index", "-i", index, "--dump").stdout)]


def test_remove(vlmkit) -> None:
    """1 where none of the ids is there, as a search that finds nothing; 3 where some are not."""
    vlmkit("index", "-i", "./i", stdin=jsonl(A, B, C))
    assert not vlmkit("index", "-i", "./i", "--remove", "b").stderr
    assert ids(vlmkit) == ["a", "c"]
    done = vlmkit("index", "-i", "./i", "--remove", "b", code=1)
    assert done.stderr.count(b"\n") == 1 and b"b: " in done.stderr
    vlmkit("index", "-i", "./i", "--remove", "x", "--remove", "a", code=3)
    vlmkit("index", "-i", "./i", "--remove", "c")
    assert ids(vlmkit) == []
    vlmkit("index", "-i", "./i", "--verify")
    vlmkit("index", "-i", "./i", stdin=jsonl(B))
    assert ids(vlmkit) == ["b"]
    vlmkit("index", "-i", "./none", "--remove", "a", code=2)


def test_dump_copies_exactly(vlmkit, tmp_path: Path) -> None:
    """Same bytes in the same order, by JSONL and by safetensors; two numbers a vector round the most."""
    rows = [embedded(f"r{i}", [1.0, i / 37], note=[i, {"x": None}]) for i in range(500)]
    vlmkit("index", "-i", "./i", stdin=jsonl(*rows))
    vlmkit("index", "-i", "./i", "--remove", "r7")
    out = vlmkit("index", "-i", "./i", "--dump").stdout
    packed = vlmkit("index", "-i", "./i", "--dump", "--format", "safetensors").stdout
    vlmkit("index", "-i", "./i", "--dump", "-o", "dump.jsonl")
    assert (tmp_path / "dump.jsonl").read_bytes() == out
    for name, data in (("j", out), ("s", packed)):
        vlmkit("index", "-i", f"./{name}", stdin=data)
        assert vlmkit("index", "-i", f"./{name}", "--dump").stdout == out
        with Index(tmp_path / "i") as source, Index(tmp_path / name) as copy:
            assert source.vectors[source.live()].tobytes() == copy.vectors.tobytes()


def test_merge(vlmkit, tmp_path: Path) -> None:
    """The ids of the merged one win; vectors go over as they are."""
    vlmkit("index", "-i", "./i", stdin=jsonl(A, B))
    vlmkit("index", "-i", "./j", stdin=jsonl(C, embedded("b", [-1, 0], note="new")))
    vlmkit("index", "-i", "./i", "--merge", "./j")
    found = {record["id"]: record for record in records(vlmkit("index", "-i", "./i", "--dump").stdout)}
    assert sorted(found) == ["a", "b", "c"] and found["b"]["note"] == "new"
    vlmkit("index", "-i", "./new", "--merge", "./i", "--merge", "./j")
    assert sorted(ids(vlmkit, "./new")) == ["a", "b", "c"]
    vlmkit("index", "-i", "./other", stdin=jsonl(embedded("d", [1, 0], "other@ba9876543210")))
    done = vlmkit("index", "-i", "./i", "--merge", "./j", "--merge", "./other", code=2)
    assert b"toy@" in done.stderr and b"other@" in done.stderr
    for wrong in ("./i", "./none"):
        assert vlmkit("index", "-i", "./i", "--merge", wrong, code=2).stderr.count(b"\n") == 1
    vlmkit("index", "-i", "./i", "--verify")


@pytest.fixture
def photos(vlmkit, tmp_path: Path) -> Path:
    """Four pictures and a tar of two, with a neighbour whose name starts alike, all in ./i."""
    folder = tmp_path / "photos"
    paths = [picture(folder / f"{name}.png") for name in "abcd"] + [picture(tmp_path / "photos2/x.png")]
    shard = tar(folder / "s.tar", {"m.jpg": jpeg(), "n.jpg": jpeg("blue")})
    names = [str(p) for p in paths] + [f"{shard}/m.jpg", f"{shard}/n.jpg", "https://example.org/photos/u.png"]
    vlmkit("index", "-i", "./i", stdin=jsonl(*(embedded(name, [1, i]) for i, name in enumerate(names))))
    return folder


def left(vlmkit) -> list[str]:
    return [Path(name).name for name in ids(vlmkit)]


def test_prune(vlmkit, photos: Path) -> None:
    vlmkit("index", "-i", "./i", "--prune", "photos/")
    assert len(ids(vlmkit)) == 8
    (photos / "b.png").unlink()
    (photos.parent / "photos2/x.png").unlink()  # not under photos/
    tar(photos / "s.tar", {"n.jpg": jpeg()})
    vlmkit("index", "-i", "./i", "--prune", "photos")
    assert left(vlmkit) == ["a.png", "c.png", "d.png", "x.png", "n.jpg", "u.png"]
    vlmkit("index", "-i", "./i", "--verify")


def test_prune_refuses_to_empty(vlmkit, photos: Path) -> None:
    for path in photos.iterdir():
        path.unlink()
    done = vlmkit("index", "-i", "./i", "--prune", "photos", code=2)
    assert b"6 of the 6" in done.stderr and b"empty" in done.stderr and len(ids(vlmkit)) == 8
    photos.rmdir()
    assert b"missing" in vlmkit("index", "-i", "./i", "--prune", "photos", code=2).stderr
    vlmkit("index", "-i", "./i", "--prune", "photos", "--force")
    assert left(vlmkit) == ["x.png", "u.png"]


def test_prune_refuses_what_may_not_be_mounted(vlmkit, tmp_path: Path) -> None:
    """A link to nothing, an empty folder: a few records behind them are as safe as all of them."""
    (tmp_path / "disk").mkdir()
    folder = tmp_path / "pool"
    names = [str(picture(folder / f"here/{i}.png")) for i in range(5)]
    (folder / "far").symlink_to(tmp_path / "disk")
    (folder / "one.png").symlink_to(tmp_path / "disk/one.png")
    (folder / "mount/.hidden").mkdir(parents=True)
    behind = {"far": folder / "far/sub/a.png", "mount": folder / "mount/deep/er/b.png", "one.png": folder / "one.png"}
    (tmp_path / "disk").rmdir()
    for name, lost in behind.items():
        rows = jsonl(*(embedded(path, [1, i]) for i, path in enumerate([*names, str(lost)])))
        refused = vlmkit("index", "-i", "./i", "--prune", "pool", code=2, stdin=rows).stderr
        assert refused.count(b"\n") == 1 and f"{folder}/{name}".encode() in refused
        assert vlmkit("index", "-i", "./i", "--prune", "pool", "--dry-run", code=2).stderr == refused
        assert len(ids(vlmkit)) == 6
        assert b" 1 record " in vlmkit("index", "-i", "./i", "--prune", "pool", "--force").stderr
        assert len(ids(vlmkit)) == 5


def test_dry_run_of_prune(vlmkit, photos: Path) -> None:
    (photos / "c.png").unlink()
    before = vlmkit("index", "-i", "./i", "--dump").stdout
    done = vlmkit("index", "-i", "./i", "--prune", "photos", "--dry-run", stdin=jsonl(A))
    assert [row["id"] for row in records(done.stdout)] == [f"{photos}/c.png"] and not done.stderr
    assert vlmkit("index", "-i", "./i", "--dump").stdout == before
    for wrong in (["--dry-run"], ["--prune", "photos", "--dry-run", "--remove", "a"]):
        vlmkit("index", "-i", "./i", *wrong, code=2)


def test_records_come_before_pruning(vlmkit, photos: Path) -> None:
    """A picture that was moved is added under its new name, and what was there goes."""
    (photos / "a.png").rename(photos / "z.png")
    row = embedded(str(photos / "z.png"), [1, 0])
    vlmkit("index", "-i", "./i", "--prune", "photos", stdin=jsonl(row))
    assert "z.png" in left(vlmkit) and "a.png" not in left(vlmkit)


def test_a_damaged_tar_keeps_its_records(vlmkit, photos: Path) -> None:
    (photos / "s.tar").write_bytes(b"no tar" * 1000)
    done = vlmkit("index", "-i", "./i", "--prune", "photos", code=3)
    assert b"s.tar could not be read whole: 2 of its records kept" in done.stderr
    assert len(ids(vlmkit)) == 8
    vlmkit("index", "-i", "./i", "--prune", "photos", "--force")
    assert len(ids(vlmkit)) == 6


@pytest.mark.parametrize("stdin", ["</dev/null", "<&-", "< <(true)"])
def test_prune_without_records(photos: Path, shell, stdin: str) -> None:
    (photos / "b.png").unlink()
    done = shell(f"vlmkit index -i ./i --prune photos {stdin} && vlmkit index -i ./i --dump | grep -c png")
    assert (done.returncode, done.stdout) == (0, b"5\n")
    assert done.stderr == b"vlmkit: 1 record pruned: their files are gone\n"


@pytest.mark.parametrize("flags", [["--dump"], ["--merge", "./j"], ["--remove", "a"], ["--info", "--verify"]])
def test_never_waits_for_input(vlmkit, tmp_path: Path, environment, flags: list[str]) -> None:
    vlmkit("index", "-i", "./i", stdin=jsonl(A))
    vlmkit("index", "-i", "./j", stdin=jsonl(B))
    reader, writer = os.pipe()
    command = ["vlmkit", "index", "-i", "./i", *flags]
    done = subprocess.run(command, stdin=reader, stdout=subprocess.PIPE, cwd=tmp_path, env=environment, timeout=100)
    os.close(writer)
    os.close(reader)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--dump", "--info"],
        ["--dump", "--remove", "a"],
        ["--verify", "--type", "ivf"],
        ["--info", "--prune", "."],
        ["--force"],
        ["--format", "jsonl"],
        ["-o", "x"],
        ["--remove", "a", "b"],
        ["--merge", "./j", "./k"],
    ],
)
def test_contradictions_are_refused(vlmkit, flags: list[str]) -> None:
    vlmkit("index", "-i", "./i", stdin=jsonl(A))
    assert vlmkit("index", "-i", "./i", *flags, code=2, stdin=jsonl(B)).stderr.count(b"\n") == 1
    assert ids(vlmkit) == ["a"]


def test_names_of_indexes(vlmkit, tmp_path: Path) -> None:
    assert vlmkit("index", "-i", "", code=2, stdin=jsonl(A)).stderr.count(b"\n") == 1
    vlmkit("index", "-i", "./i1", stdin=jsonl(A))
    assert b"-i ./i1" in vlmkit("index", "-i", "i1", "--info", code=2).stderr


def test_records_without_a_model(vlmkit) -> None:
    vlmkit("index", "-i", "./i", stdin=jsonl({"id": "a", "embedding": [1, 0]}))
    done = vlmkit("search", "-i", "./i", "a cat", code=2)
    assert done.stderr.count(b"\n") == 1 and b"does not say which model" in done.stderr


def test_an_id_that_comes_again_with_another_picture_is_told(vlmkit) -> None:
    """In one run, and in the next; the same picture again is an update."""
    rows = [embedded(f"/{n}.png", [1, n]) | {"id": str(n % 2)} for n in range(3)]
    said = vlmkit("index", "-i", "./i", stdin=jsonl(*rows)).stderr
    assert b"1 records replaced others of the same id" in said and b"such as 0:" in said
    assert vlmkit("index", "-i", "./i", stdin=jsonl(rows[2] | {"extra": 1})).stderr == b""
    assert b"such as 0:" in vlmkit("index", "-i", "./i", stdin=jsonl(rows[0])).stderr
    assert vlmkit("index", "-i", "./i", "-q", stdin=jsonl(rows[2])).stderr == b""


def test_prune_of_a_folder_by_another_path_is_told(vlmkit, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(tmp_path / "photos")
    rows = jsonl(embedded(str(picture(tmp_path / "photos/a.png")), [1, 0]))
    done = vlmkit("index", "-i", "./i", "--prune", "other", stdin=rows)
    assert b"no record in the index lies under other" in done.stderr and len(ids(vlmkit)) == 1
