"""index through the installed command."""

import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import safetensors.numpy
from helpers import embedded, jsonl, picture, records

from vlmkit.errors import VlmkitError
from vlmkit.index import Index, Writer
from vlmkit.io.records import dumps


def info(vlmkit, index: str = "./i") -> dict:
    (found,) = records(vlmkit("index", "-i", index, "--info").stdout)
    return found


def many(count: int, dim: int = 8, seed: int = 0, start: int = 0) -> list[dict]:
    """Records with random unit vectors."""
    numbers = np.random.default_rng(seed).standard_normal((count, dim))
    return [embedded(f"r{start + i:06}", list(row)) for i, row in enumerate(numbers)]


def test_info_of_a_named_index(vlmkit, tmp_path: Path) -> None:
    vlmkit("index", stdin=jsonl(*many(3)))
    found = info(vlmkit, "default")
    assert list(found) == ["path", "model", "dim", "count", "type", "bytes", "changed", "reason"]
    assert found["path"] == str(tmp_path / "home/XDG_DATA_HOME/vlmkit/default")
    assert (found["model"], found["dim"], found["count"], found["type"]) == ("toy@0123456789ab", 8, 3, "flat")
    assert abs(datetime.fromisoformat(found["changed"]).timestamp() - time.time()) < 60
    assert found["bytes"] == sum(p.stat().st_size for p in Path(found["path"]).iterdir())
    os.utime(Path(found["path"]) / "index.sqlite", (1e9, 1e9))
    assert datetime.fromisoformat(info(vlmkit, "default")["changed"]).timestamp() == 1e9  # not when one asked


def test_upsert_by_id(vlmkit) -> None:
    vlmkit("index", "-i", "./i", stdin=jsonl(embedded("a", [1, 0]), embedded("b", [0, 1]), embedded("a", [0, -1])))
    assert info(vlmkit)["count"] == 2
    vlmkit("index", "-i", "./i", stdin=jsonl(embedded("b", [1, 1], note="new")))
    assert info(vlmkit)["count"] == 2
    with opened(vlmkit) as index:
        hits = index.search(np.array([[2**-0.5, 2**-0.5]], np.float32), 5)[0]
    assert [(hit.record["id"], hit.record.get("note")) for hit in hits] == [("b", "new"), ("a", None)]
    assert hits[0].score == pytest.approx(1, abs=1e-3)
    vlmkit("index", "-i", "./i", "--verify")


def opened(vlmkit) -> Index:
    """The index at ./i, opened in this process."""
    return Index(Path(info(vlmkit)["path"]))


def test_exact_search_equals_numpy(tmp_path: Path) -> None:
    """Held against the definition: the inner products of the float16 vectors, sorted."""
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((5000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with Writer(tmp_path / "i") as writer:
        for i, row in enumerate(vectors):
            writer.add({"id": str(i), "model": "toy@0", "embedding": row})
    queries = vectors[:7] + rng.standard_normal((7, 32)).astype(np.float32) / 10
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    cosines = queries @ vectors.astype(np.float16).astype(np.float32).T
    best = np.argsort(-cosines, axis=1)[:, :10]
    with Index(tmp_path / "i") as index:
        for hits, order, row in zip(index.search(queries, 10), best, cosines, strict=True):
            assert [int(hit.record["id"]) for hit in hits] == list(order)
            assert np.allclose([hit.score for hit in hits], row[order], atol=1e-5)


def test_replaced_records_are_cleared_away(vlmkit, tmp_path: Path) -> None:
    sizes = set()
    for seed in range(6):
        vlmkit("index", "-i", "./i", stdin=jsonl(*many(50, seed=seed)))
        vlmkit("index", "-i", "./i", "--verify")
        (vectors,) = (tmp_path / "i").glob("vectors-*.f16")
        sizes.add(vectors.stat().st_size)
    assert max(sizes) <= 2 * 50 * 8 * 2
    rows = {r["id"]: np.array(r["embedding"]) for r in many(50, seed=5)}
    with opened(vlmkit) as index:
        assert len(index) == 50
        for key, row in rows.items():
            query = (row / np.linalg.norm(row)).astype(np.float32)[None]
            assert index.search(query, 1)[0][0].record["id"] == key


def test_refuses_another_model_and_names_both(vlmkit) -> None:
    vlmkit("index", "-i", "./i", stdin=jsonl(embedded("a", [1, 0])))
    done = vlmkit("index", "-i", "./i", stdin=jsonl(embedded("b", [1, 0], "other@ffffffffffff")), code=2)
    assert b"toy@0123456789ab" in done.stderr and b"other@ffffffffffff" in done.stderr
    vlmkit("index", "-i", "./i", stdin=jsonl(embedded("c", [1, 0], "renamed@0123456789ab")))
    vlmkit("index", "-i", "./i", stdin=jsonl(embedded("d", [1, 0, 0])), code=2)
    assert info(vlmkit)["count"] == 2


def test_keeps_what_came_before_the_error(vlmkit) -> None:
    rows = [*many(5), embedded("x", [1] * 8, "other@ffffffffffff")]
    vlmkit("index", "-i", "./i", stdin=jsonl(*rows), code=2)
    assert info(vlmkit)["count"] == 5


@pytest.mark.parametrize(
    "bad", [{"embedding": "###"}, {"embedding": []}, {"embedding": [0, 0]}, {"embedding": ["x"]}, {}]
)
def test_records_without_a_vector_fail_alone(vlmkit, tmp_path: Path, bad: dict) -> None:
    rows = [embedded("a", [1, 0]), {"id": "bad", "model": "toy@0123456789ab", **bad}, embedded("b", [0, 1])]
    vlmkit("index", "-i", "./i", "--errors", "e.jsonl", stdin=jsonl(*rows), code=3)
    assert info(vlmkit)["count"] == 2
    assert [r["id"] for r in records((tmp_path / "e.jsonl").read_bytes())] == ["bad"]


def test_empty_input_makes_no_index(vlmkit, tmp_path: Path) -> None:
    vlmkit("index", "-i", "./i")
    assert not (tmp_path / "i").exists()
    vlmkit("index", "-i", "./i", "--info", code=2)
    vlmkit("index", "-i", "./i", "missing.jsonl", code=2)


def test_refuses_a_folder_of_pictures(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "photos/a.png")
    assert b"vlmkit embed" in vlmkit("index", "photos", code=2).stderr
    vlmkit("index", "-i", "./photos", stdin=jsonl(embedded("a", [1, 0])), code=2)
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.png"]


def test_info_and_verify_never_wait_for_input(vlmkit, tmp_path: Path, environment) -> None:
    vlmkit("index", "-i", "./i", stdin=jsonl(*many(3)))
    reader, writer = os.pipe()
    for flag in ("--info", "--verify"):
        done = subprocess.run(
            ["vlmkit", "index", "-i", "./i", flag], stdin=reader, cwd=tmp_path, env=environment, timeout=60
        )
        assert done.returncode == 0
    os.close(writer)
    os.close(reader)


def damage_short(folder: Path) -> None:
    file = folder / "vectors-0.f16"
    file.write_bytes(file.read_bytes()[:-2])


def damage_vector(folder: Path) -> None:
    file = folder / "vectors-0.f16"
    file.write_bytes(bytes(16) + file.read_bytes()[16:])


def damage_slots(folder: Path) -> None:
    with sqlite3.connect(folder / "index.sqlite") as db:
        db.execute("DELETE FROM records WHERE slot = 1")


def damage_record(folder: Path) -> None:
    with sqlite3.connect(folder / "index.sqlite") as db:
        db.execute("UPDATE records SET record = '{}' WHERE slot = 1")


def damage_database(folder: Path) -> None:
    (folder / "index.sqlite").write_bytes(b"no database" * 1000)


@pytest.mark.parametrize("damage", [damage_short, damage_vector, damage_slots, damage_record, damage_database])
def test_verify_finds_damage(vlmkit, tmp_path: Path, damage) -> None:
    vlmkit("index", "-i", "./i", stdin=jsonl(*many(3)))
    vlmkit("index", "-i", "./i", "--verify")
    damage(tmp_path / "i")
    done = vlmkit("index", "-i", "./i", "--verify", code=2)
    assert len(done.stderr.splitlines()) == 1


def test_a_damaged_index_takes_no_records(vlmkit, tmp_path: Path) -> None:
    vlmkit("index", "-i", "./i", stdin=jsonl(*many(3)))
    damage_short(tmp_path / "i")
    vlmkit("index", "-i", "./i", stdin=jsonl(*many(1, start=9)), code=2)
    vlmkit("index", "-i", "./i", "--verify", code=2)


@pytest.mark.parametrize("left", [[], ["-wal", "-shm"], ["-wal"], ["-shm"]])
def test_read_only_index(vlmkit, tmp_path: Path, left: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who may not write sees all that is committed, whatever a killed writer or a copy left beside it."""
    vlmkit("index", "-i", "./made", stdin=jsonl(*many(3)))
    with Index(tmp_path / "made"):  # an open reader keeps the log
        vlmkit("index", "-i", "./made", stdin=jsonl(*many(4, start=3)))
        shutil.copytree(tmp_path / "made", tmp_path / "i")
    for end in {"-wal", "-shm"} - set(left):
        (tmp_path / f"i/index.sqlite{end}").unlink()
    for path in (tmp_path / "i").iterdir():
        path.chmod(0o444)
    (tmp_path / "i").chmod(0o555)
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and may(path, mode))  # root may always
    try:
        expected = 7 if "-wal" in left else 3
        assert (
            info(vlmkit)["count"] == expected
            and len(records(vlmkit("index", "-i", "./i", "--dump").stdout)) == expected
        )
        vlmkit("index", "-i", "./i", "--verify")
    finally:
        (tmp_path / "i").chmod(0o755)


def unread(pipe: IO[bytes]) -> int:
    """How many bytes the reader of `pipe` has not taken yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def committed(folder: Path) -> int:
    """The records that a reader sees."""
    try:
        with Index(folder) as index:
            return len(index)
    except VlmkitError:
        return 0


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_commits_what_came(vlmkit, tmp_path: Path, environment, number: int, code: int) -> None:
    process = subprocess.Popen(["vlmkit", "index", "-i", "./i"], stdin=subprocess.PIPE, cwd=tmp_path, env=environment)
    assert process.stdin
    process.stdin.write(jsonl(*many(100)))
    process.stdin.flush()
    wait_for(lambda: unread(process.stdin) == 0)
    time.sleep(0.5)
    assert process.poll() is None and not (tmp_path / "i").exists()  # nothing is committed yet, more may come
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    process.stdin.close()
    assert info(vlmkit)["count"] == 100
    vlmkit("index", "-i", "./i", "--verify")


def test_sigkill_between_commits_loses_no_commit(vlmkit, tmp_path: Path, environment) -> None:
    """Killed while it waits for more, after one commit of 10,000: exactly those are there."""
    process = subprocess.Popen(["vlmkit", "index", "-i", "./i"], stdin=subprocess.PIPE, cwd=tmp_path, env=environment)
    assert process.stdin
    process.stdin.write(jsonl(*many(10_500)))
    process.stdin.flush()
    wait_for(lambda: unread(process.stdin) == 0 and committed(tmp_path / "i") > 0)
    assert process.poll() is None
    process.kill()
    process.wait()
    process.stdin.close()
    assert info(vlmkit)["count"] == 10_000
    vlmkit("index", "-i", "./i", "--verify")


def test_bytes_past_the_commit_mean_nothing(vlmkit, tmp_path: Path) -> None:
    """What a writer that was killed before its commit left behind is written over."""
    vlmkit("index", "-i", "./i", stdin=jsonl(*many(3)))
    with (tmp_path / "i/vectors-0.f16").open("ab") as file:
        file.write(b"torn" * 5)
    vlmkit("index", "-i", "./i", stdin=jsonl(*many(3, seed=1, start=3)))
    vlmkit("index", "-i", "./i", "--verify")
    assert info(vlmkit)["count"] == 6


def test_two_writers_at_once(vlmkit, tmp_path: Path, environment) -> None:
    for start in (0, 3000):
        (tmp_path / f"{start}.jsonl").write_bytes(jsonl(*many(3000, start=start)))
    command = ["vlmkit", "index", "-i", "./i"]
    running = [subprocess.Popen([*command, f"{s}.jsonl"], cwd=tmp_path, env=environment) for s in (0, 3000)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert info(vlmkit)["count"] == 6000
    vlmkit("index", "-i", "./i", "--verify")


def test_info_is_one_line(vlmkit) -> None:
    vlmkit("index", "-i", "./i", stdin=jsonl(*many(1)))
    out = vlmkit("index", "-i", "./i", "--info").stdout
    assert out.count(b"\n") == 1 and json.loads(out)


def test_a_vector_of_another_length_fails_alone(vlmkit, tmp_path: Path) -> None:
    own = [[1, 2, 3], [1, 2], [0, 0, 0], [1e300, 1, 1], ["1", 2, 3], {"x": 1}, [3, 2, 1]]
    rows = [{"id": str(i), "embedding": vector} for i, vector in enumerate(own)]
    done = vlmkit("index", "-i", "./own", code=3, stdin=jsonl(*rows))
    assert b"1: the embedding has 2 numbers, those of the index 3" in done.stderr and done.stderr.count(b"\n") == 5
    kept = records(vlmkit("index", "-i", "./own", "--dump").stdout)
    assert [row["id"] for row in kept] == ["0", "6"]
    named = jsonl({"id": "7", "model": "m@0123456789ab", "embedding": [1, 2]})
    assert b"holds vectors of None" in vlmkit("index", "-i", "./own", code=2, stdin=named).stderr


def test_a_vector_that_its_model_does_not_make_is_not_taken_over(vlmkit, photos: Path) -> None:
    (row,) = records(vlmkit("embed", photos / "coffee.png").stdout)
    odd = jsonl(row | {"embedding": [1, 2, 3]}, row)
    done = vlmkit("classify", "--labels", "cup,cat", code=3, stdin=odd)
    assert len(records(done.stdout)) == 1 and b"its embedding has 3 numbers" in done.stderr


def test_safetensors_are_indexed_as_jsonl_is(vlmkit, tmp_path: Path) -> None:
    """In blocks or one by one: vectors of zeros and of length 2, ids that come again, a record without a picture."""
    rows = many(3300)
    half = np.array([row.pop("embedding") for row in rows])
    half = (half / np.linalg.norm(half, axis=1, keepdims=True)).astype(np.float16)
    half[1100], half[1200] = 0, 2 * half[1200]
    for row in rows:
        row["image"] = row["id"] = f"/photos/{row['id']}.jpg"
    rows[2100]["id"], rows[2300]["id"] = rows[2200]["id"], rows[5]["id"]
    rows[2400]["moved_from"] = "/photos/before.jpg"
    rows[3200] = {"id": "words", "text": "a red square", "model": rows[0]["model"]}
    text = np.frombuffer(b"".join(map(dumps, rows)), np.uint8)
    (tmp_path / "a.safetensors").write_bytes(safetensors.numpy.save({"embedding": half, "records": text}))
    lines = (dumps(row | {"embedding": numbers}) for row, numbers in zip(rows, half, strict=True))
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    found = []
    for name in ("a.safetensors", "a.jsonl"):
        first, again = (vlmkit("index", "-i", f"./{name}.index", name, code=3).stderr for _ in range(2))
        assert b"r001100.jpg: embedding is empty, zero or not finite" in first
        assert b"2 records replaced others of the same id" in first
        dump = vlmkit("index", "-i", f"./{name}.index", "--dump").stdout
        found.append((dump, first.replace(name.encode(), b""), again.replace(name.encode(), b"")))
    assert found[0] == found[1] and found[0][0].count(b"\n") == 3297 and b"moved_from" not in found[0][0]


def test_an_index_behind_a_link_to_nothing(vlmkit, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    row = jsonl({"id": "1", "model": "m@123456123456", "embedding": [1, 0]})
    assert b"link is a link that leads nowhere" in vlmkit("index", "-i", "./link", stdin=row, code=2).stderr


def test_a_full_disk_does_not_keep_readers_out(shell, vlmkit, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if shell("mount -t tmpfs -o size=256k tmpfs disk").returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        row = jsonl({"id": "1", "model": "m@123456123456", "embedding": [1, 0]})
        vlmkit("index", "-i", "./disk/i", stdin=row)
        shell("head -c 300000 /dev/zero > disk/full")
        assert vlmkit("index", "-i", "./disk/i", stdin=row, code=2).stderr.count(b"\n") == 1
        assert json.loads(vlmkit("index", "-i", "./disk/i", "--info").stdout)["count"] == 1
        assert records(vlmkit("index", "-i", "./disk/i", "--dump").stdout)[0]["id"] == "1"
    finally:
        shell("umount -l disk")
