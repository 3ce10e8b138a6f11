"""Small awkward things a user types: each gets one clear line, or nothing where there is nothing to do."""

from pathlib import Path

import pytest
from helpers import embedded, jsonl, picture, records


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--batch-size", "x"], "'x' is not auto or a number from 1 to 65536"),
        (["--batch-size", "-3"], "'-3' is not auto or a number from 1 to 65536"),
        (["--batch-size", ""], "'' is not auto or a number from 1 to 65536"),
        (["-m", ""], "the model has no name: give -m mini"),
        (["-m", " "], "the model has no name: give -m mini"),
        (["ftp://host/x.jpg"], "ftp://host/x.jpg: only http and https URLs are fetched"),
        (["file:///x.jpg"], "file:///x.jpg: only http and https URLs are fetched"),
    ],
)
def test_one_clear_line(vlmkit, tmp_path: Path, arguments: list[str], line: str) -> None:
    done = vlmkit("embed", *arguments, picture(tmp_path / "a.png"), code=2)
    assert done.stderr.count(b"\n") == 1 and line in done.stderr.decode() and not done.stdout


def test_a_condition_that_is_no_text(vlmkit) -> None:
    done = vlmkit("search", "--like", "a", "--where", b"a\xff=3".decode(errors="surrogateescape"), code=2)
    assert done.stderr.count(b"\n") == 1 and b"is not UTF-8" in done.stderr


def test_ftp_in_a_list_fails_alone(vlmkit, tmp_path: Path) -> None:
    names = f"ftp://host/x.jpg\n{picture(tmp_path / 'a.png')}\n".encode()
    done = vlmkit("embed", stdin=names, code=3)
    assert b"ftp://host/x.jpg: only http and https" in done.stderr and len(records(done.stdout)) == 1


def test_a_record_without_any_name_is_reported_by_its_place(vlmkit, tmp_path: Path) -> None:
    rows = [embedded("a", [1, 0]), {"embedding": [1, 0], "model": "toy@0123456789ab"}, {}, embedded("b", [0, 1])]
    done = vlmkit("index", "--errors", "e.jsonl", stdin=jsonl(*rows), code=3)
    assert [line.split(b":")[1] for line in done.stderr.splitlines()] == [b" record 2", b" record 3"]
    failed = records((tmp_path / "e.jsonl").read_bytes())
    assert [(r["id"], r["image"], r["error"]) for r in failed] == [(f"record {n}", None, "no id") for n in (2, 3)]


def test_without_any_query_nothing_happens(vlmkit, shell, tmp_path: Path) -> None:
    vlmkit("index", stdin=vlmkit("embed", picture(tmp_path / "a.png")).stdout)
    (tmp_path / "empty").touch()
    for queries in ("/dev/null", "empty", "-"):
        done = vlmkit("search", "--queries", queries)
        assert done.stdout == done.stderr == b""


@pytest.mark.parametrize("command", ["embed", "index", "classify --labels a,b"])
def test_the_null_device_is_an_empty_input(vlmkit, command: str) -> None:
    done = vlmkit(*command.split(), "/dev/null")
    assert done.stdout == done.stderr == b""
