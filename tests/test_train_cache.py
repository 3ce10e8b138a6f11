"""What was read of DATA is kept beside it, and taken over while nothing has changed."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import jsonl, picture, tar
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.errors import VlmkitError
from vlmkit.io.terminal import Failures
from vlmkit.train.data import cache
from vlmkit.train.data import dataset as reading
from vlmkit.train.data.loader import explain_lost_worker
from vlmkit.train.data.mixture import Mixture
from vlmkit.train.data.samples import parse_captioned, parse_dialogues
from vlmkit.train.data.store import HashSet


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    rows = [{"id": str(i), "image": f"{'abcd'[i % 4]}.png", "captions": [f"{i} \u00e4", "x"]} for i in range(20)]
    (tmp_path / "x.jsonl").write_bytes(jsonl(*rows, rows[0]) + b"no JSON\n")
    return tmp_path / "x.jsonl"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the records that were parsed."""
    found: list[str] = []

    def parse_dialogues_counted(record: dict, id: str, pictures: tuple) -> list:
        found.append(id)
        return parse_dialogues(record, id, pictures)

    monkeypatch.setitem(reading.FORMS, parse_dialogues_counted, "")
    monkeypatch.setattr("test_train_cache.parse", parse_dialogues_counted, raising=False)
    return found


parse: Callable = parse_dialogues


def read(*data: object, errors: Path | None = None, **options) -> Mixture:
    with Failures(str(errors) if errors else None) as failures:
        return reading.read_data([str(path) for path in data], parse, failures=failures, **options)


def test_a_second_reading_takes_over_and_tells_the_same(
    data: Path, parsed: list[str], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    first = read(data, errors=tmp_path / "1.jsonl")
    told, seen = capfd.readouterr().err, len(parsed)
    second = read(f"2:{data}", errors=tmp_path / "2.jsonl")  # a weight changes nothing of it
    assert len(parsed) == seen and capfd.readouterr().err == told and told.count("\n") == 7
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    assert list(second.rows) == list(first.rows) and len(first.rows) == 30
    assert [row.pictures[0].size for row in first.rows][:2] == [(tmp_path / "a.png").stat().st_size] * 2
    for name in ("read", "samples", "reasons", "fingerprint"):
        assert getattr(second.table[0], name) == getattr(first.table[0], name)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".vlmkit"]


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + jsonl({"id": "new", "image": "a.png", "captions": ["new"]}))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a row more": lengthened,
    "a picture gone": lambda path: (path.parent / "a.png").unlink(),
    "a picture there now": lambda path: shutil.copy(path.parent / "a.png", path.parent / "d.png"),
    "a picture changed": lambda path: picture(path.parent / "a.png", "blue"),
    "a time changed": lambda path: os.utime(path, (1, 1)),
    "damaged": lambda path: next((path.parent / ".vlmkit").glob("train-*/stamps.jsonl")).write_text("{"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_read_again(data: Path, parsed: list[str], change: str) -> None:
    before = read(data)
    first = before.rows[0]
    seen = len(parsed)
    CHANGES[change](data)
    after = read(data)
    assert len(parsed) > seen
    assert before.rows[0] == first, "a run goes on with what it began with"
    assert (len(after.rows) - len(before.rows)) == {
        "a row more": 1,
        "a picture gone": -10,
        "a picture there now": 10,
    }.get(change, 0)


def test_other_settings_are_kept_apart(data: Path, parsed: list[str]) -> None:
    assert len(read(data, limit=3).rows) == 6 and len(read(data).rows) == 30
    seen = len(parsed)
    assert len(read(data, limit=3).rows) == 6 and len(read(data).rows) == 30 and len(parsed) == seen


def test_where_the_folder_cannot_be_written_to(
    data: Path, parsed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.os, "access", lambda path, mode: tmp_path / "home" in (Path(path), *Path(path).parents))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert len(read(data).rows) == len(read(data).rows) == 30 and len(parsed) == 16
    assert not (tmp_path / ".vlmkit").exists() and len(list((tmp_path / "home/vlmkit/train").iterdir())) == 1


def test_a_full_disk_leaves_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reading.RowWriter, "add", full)
    with pytest.raises(VlmkitError, match=r"has no room for what was read of the data .*: free some space"):
        read(data)
    assert not list((data.parent / ".vlmkit").iterdir())


def test_a_process_that_reads_may_be_killed() -> None:
    with pytest.raises(VlmkitError, match="a process that reads the data was killed"), explain_lost_worker():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="something else"), explain_lost_worker():
        raise RuntimeError("something else")


def test_members_of_tar_files(tmp_path: Path, parsed: list[str]) -> None:
    shard = tar(tmp_path / "s.tar", {"1.png": picture(tmp_path / "1.png").read_bytes(), "1.txt": b"a cat"})
    first, second = read(shard), read(shard)
    assert list(first.rows) == list(second.rows) and parsed == [f"{shard}/1.png"]
    assert first.rows[0].pictures[0].read() == (tmp_path / "1.png").read_bytes()


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 9), max_size=3000))
def test_a_set_of_hashes(hashes: list[int]) -> None:
    found, known = HashSet(), set()
    for number in hashes:
        assert found.add(number) == ((number or 1) not in known)
        known.add(number or 1)


def test_a_store_is_no_code(data: Path) -> None:
    """Whoever shares a folder of data shares its cache."""
    read(data)
    folder = next((data.parent / ".vlmkit").glob("train-*"))
    for line in (folder / "rows.jsonl").read_text().splitlines():
        assert json.loads(line)[0] == "dialogue"
    assert {path.suffix for path in folder.iterdir()} <= {".jsonl", ".json", ".bin"}
    assert np.fromfile(folder / "columns.bin", "u1").size == 30 * 30
    assert len(reading.read_data([str(data)], parse_captioned, failures=Failures()).rows) == 15
