"""caption and --resume, through the installed command, with a small model of random weights."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import SCRIPT
from helpers import jsonl, noise, picture, records, tar
from PIL import Image

ONE_BY_ONE = ("--batch-size", "1", "--max-tokens", "8")
ALT = re.compile(r"[^a-z].*[.!?]")


@pytest.fixture(autouse=True)
def model(environment: dict[str, str], talking: Path) -> str:
    environment["VLMKIT_CHAT_MODEL"] = str(talking / "packed")
    return environment["VLMKIT_CHAT_MODEL"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `some` with three pictures of noise."""
    (tmp_path / "some").mkdir()
    for name, array in zip("abc", noise(3), strict=True):
        Image.fromarray(array).save(tmp_path / f"some/{name}.png")
    return tmp_path / "some"


@pytest.mark.slow
def test_one_picture_one_sentence(vlmkit, folder: Path) -> None:
    done = vlmkit("caption", folder / "a.png")
    assert done.stdout.count(b"\n") == 1 and done.stderr == b""
    assert ALT.fullmatch(done.stdout.decode().strip())
    assert vlmkit("caption", stdin=(folder / "a.png").read_bytes()).stdout == done.stdout
    (row,) = records(vlmkit("caption", "some/a.png", "--json").stdout)
    assert row["caption"] == done.stdout.decode().strip() and row["image"] == str(folder / "a.png")


@pytest.mark.slow
def test_several_give_records(vlmkit, folder: Path, tmp_path: Path, model: str) -> None:
    rows = records(vlmkit("caption", folder).stdout)
    assert [row["id"] for row in rows] == [str(folder / f"{n}.png") for n in "abc"]
    assert all(
        row["caption_model"].startswith(f"{model}@") and row.keys() - {"max_tokens"} == rows[0].keys() - {"max_tokens"}
        for row in rows
    )
    assert len({row["caption"] for row in rows}) == 3
    two = records(vlmkit("caption", folder / "b.png", folder / "a.png").stdout)
    assert two == [rows[1], rows[0]]
    listed = jsonl({"id": "1", "image": str(folder / "a.png"), "captions": ["a"], "question": "what?"})
    (kept,) = records(vlmkit("caption", stdin=listed).stdout)
    assert kept["captions"] == ["a"] and kept["question"] == "what?" and kept["caption"] == rows[0]["caption"]
    shard = tar(tmp_path / "one.tar", {"a.png": (folder / "a.png").read_bytes()})
    (member,) = records(vlmkit("caption", shard).stdout)
    assert member["caption"] == rows[0]["caption"] and member["image"] == f"{shard}/a.png"


@pytest.mark.slow
def test_how_it_begins_and_how_long_it_is(vlmkit, folder: Path) -> None:
    plain = vlmkit("caption", folder / "a.png").stdout.decode()
    guided = vlmkit("caption", folder / "a.png", "--prompt", "This image shows").stdout.decode()
    assert guided.startswith("This image shows") and len(guided) > len("This image shows.\n")
    some = [folder / "b.png", folder / "c.png"]  # of a.png this model says nothing in short
    by_length = {n: vlmkit("caption", *some, "--length", n, "--json").stdout for n in ("short", "normal", "long")}
    sizes = {n: sum(len(row["caption"]) for row in records(found)) for n, found in by_length.items()}
    assert sizes["short"] < sizes["normal"] <= sizes["long"]
    assert len(vlmkit("caption", folder / "a.png", "--max-tokens", 3).stdout) < len(plain)
    chance = [vlmkit("caption", folder / "a.png", "--temperature", 1, "--seed", s).stdout for s in (1, 2, 1)]
    assert chance[0] == chance[2] != chance[1]


@pytest.mark.slow
def test_what_cannot_be_described(vlmkit, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    assert b"broken.png" in vlmkit("caption", folder / "broken.png", code=2).stderr
    done = vlmkit("caption", folder, "--errors", "errors.jsonl", code=3)
    assert len(records(done.stdout)) == 3
    (failed,) = records((folder.parent / "errors.jsonl").read_bytes())
    assert failed["image"] == str(folder / "broken.png")
    rows = jsonl(
        {"id": "1", "text": "no picture"},
        {"id": "2", "images": [str(folder / "a.png"), str(folder / "b.png")]},
        {"id": "3", "image": str(folder / "a.png")},
    )
    done = vlmkit("caption", stdin=rows, code=3)
    assert [row["id"] for row in records(done.stdout)] == ["3"]
    assert b"1: no picture" in done.stderr and b"several pictures" in done.stderr
    assert vlmkit("caption", stdin=b"").stdout == b""
    assert b"no such file" in vlmkit("caption", "nothing.jpg", code=2).stderr


@pytest.mark.slow
def test_resume_leaves_out_what_is_there(vlmkit, folder: Path, tmp_path: Path) -> None:
    whole = vlmkit("caption", folder).stdout
    file = tmp_path / "captions.jsonl"
    assert vlmkit("caption", folder / "a.png", "--resume", file).stdout == b""
    assert file.read_bytes() == whole.splitlines(keepends=True)[0]
    vlmkit("caption", folder, "--resume", file)
    assert file.read_bytes() == whole
    file.write_bytes(whole[:-30])  # torn
    vlmkit("caption", folder, "--resume", file)
    assert file.read_bytes() == whole
    file.write_bytes(whole[:-1])  # whole but for its line feed
    before = file.stat().st_ino
    vlmkit("caption", folder, "--resume", file)
    assert file.read_bytes() == whole and file.stat().st_ino == before
    vlmkit("caption", folder, "-m", "./nothing", "--resume", tmp_path / "new.jsonl", code=2)
    assert not (tmp_path / "new.jsonl").exists()


@pytest.mark.slow
def test_what_is_left_of_a_run_is_not_all_of_it(vlmkit, folder: Path, tmp_path: Path) -> None:
    """A folder with one bad picture ends with 3 each night, not with 2 from the second on."""
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for how in (["--resume", tmp_path / "captions.jsonl"], ["--sidecar"]):
        vlmkit("caption", folder, *how, code=3)
        vlmkit("caption", folder, *how, code=3)
    vlmkit("caption", folder / "bad.png", "--sidecar", code=2)
    assert b"name a file" in vlmkit("caption", folder, "--resume", "-", code=2).stderr


def test_a_sidecar_through_a_link_to_nothing(vlmkit, folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").symlink_to(tmp_path / "elsewhere.txt")
    vlmkit("caption", folder / "a.png", "--sidecar")
    assert not (tmp_path / "elsewhere.txt").exists()


def test_a_resumed_run_draws_as_a_whole_one_does(vlmkit, folder: Path, tmp_path: Path) -> None:
    how = ("--temperature", 1, "--max-tokens", 8)
    whole = vlmkit("caption", folder, *how).stdout
    file = tmp_path / "captions.jsonl"
    file.write_bytes(whole.splitlines(keepends=True)[0])
    vlmkit("caption", folder, *how, "--resume", file)
    assert file.read_bytes() == whole


def test_resume_tells_records_apart(vlmkit, folder: Path, tmp_path: Path) -> None:
    """By id, pictures and question together; of equal records as many are made as there are."""
    file, one, two = tmp_path / "answers.jsonl", str(folder / "a.png"), str(folder / "b.png")
    rows = [{"image": one, "question": "a dog"}, {"image": one, "question": "x"}, {"id": "9", "question": "red"}]
    rows += [{"id": "7", "image": one, "question": "x"}, {"id": "7", "image": two, "question": "x"}, *rows[:1]]
    vlmkit("ask", "--resume", file, stdin=jsonl(*rows[:1]))
    for _ in range(2):
        vlmkit("ask", "--resume", file, stdin=jsonl(*rows))
        assert [row["question"] for row in records(file.read_bytes())] == ["a dog", "x", "red", "x", "x", "a dog"]
    file.write_bytes(jsonl({"id": "9"}, {"id": one, "image": one, "question": "x"}))  # the first is of a caption
    vlmkit("ask", "--resume", file, stdin=jsonl(*rows[:3]))
    assert [row.get("question") for row in records(file.read_bytes())] == [None, "x", "a dog", "red"]


def test_a_picture_without_a_name_is_not_resumed(vlmkit, folder: Path, tmp_path: Path) -> None:
    for name in "ab":
        vlmkit("caption", "--resume", "made.jsonl", stdin=(folder / f"{name}.png").read_bytes())
    assert len(records((tmp_path / "made.jsonl").read_bytes())) == 2


def test_resume_keeps_what_is_not_its_own(vlmkit, folder: Path, tmp_path: Path) -> None:
    for name, data in {
        "a.txt": b"dear diary\n",
        "b.txt": b"dear diary",
        "c.jsonl": b'{"id":"1"}\n[1]\n{"id":"2"}\n',
    }.items():
        (tmp_path / name).write_bytes(data)
        assert b"is not a record" in vlmkit("caption", folder, "--resume", tmp_path / name, code=2).stderr
        assert (tmp_path / name).read_bytes() == data
    assert b"is not a record" in vlmkit("caption", folder, "--resume", folder / "a.png", code=2).stderr
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(jsonl({"id": "1", "image": str(folder / "a.png")}))
    assert b"is an input" in vlmkit("caption", rows, "--resume", rows, code=2).stderr
    assert b"excludes -o" in vlmkit("caption", folder, "--resume", "x", "-o", "y", code=2).stderr
    assert b"not a regular file" in vlmkit("caption", folder, "--resume", "/dev/null", code=2).stderr
    assert b"cannot write" in vlmkit("caption", folder, "--resume", "no/such/folder", code=2).stderr


def test_a_file_piped_in_is_not_resumed(shell, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl({"id": "1", "image": str(folder / "a.png")}))
    done = shell("vlmkit caption --resume rows.jsonl < rows.jsonl")
    assert done.returncode == 2 and b"is an input" in done.stderr


def many(folder: Path) -> list[str]:
    return [str(picture(folder / f"{n:03}.jpg", (n, 255 - n, 90), (90, 80))) for n in range(40)]


def started(environment: dict[str, str], *arguments: object, **options: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [SCRIPT, "caption", *ONE_BY_ONE, *map(str, arguments)],
        env=environment,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.slow
def test_a_killed_run_goes_on(vlmkit, environment: dict[str, str], tmp_path: Path) -> None:
    names, file = many(tmp_path / "many"), tmp_path / "captions.jsonl"
    run = started(environment, *names, "--resume", file)
    while not file.exists() or file.read_bytes().count(b"\n") < 10:
        assert run.poll() is None
        time.sleep(0.01)
    busy = vlmkit("caption", names[0], "--resume", file, code=2)
    assert b"another run writes" in busy.stderr
    run.send_signal(signal.SIGKILL)
    run.communicate()
    done = file.read_bytes().count(b"\n")
    assert 10 <= done < len(names)
    vlmkit("caption", *ONE_BY_ONE, *names, "--resume", file)
    found = records(file.read_bytes())
    assert [row["image"] for row in found] == names
    assert [row["caption"] for row in found] == [
        row["caption"] for row in records(vlmkit("caption", "--max-tokens", 8, *names).stdout)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_whole_lines(environment: dict[str, str], tmp_path: Path, number: int) -> None:
    names = many(tmp_path / "many")
    with started(environment, *names, "--errors", tmp_path / "errors.jsonl", stdout=subprocess.PIPE) as run:
        first = run.stdout.readline()
        run.send_signal(number)
        rest, reported = run.communicate()
    assert run.returncode == 128 + number and reported == b""
    assert 0 < len(records(first + rest)) < len(names)
    assert sorted(os.listdir(tmp_path)) == ["home", "many"]


@pytest.mark.slow
def test_a_reader_that_goes_away(shell, tmp_path: Path) -> None:
    many(tmp_path / "many")
    done = shell("vlmkit caption --batch-size 1 many/ | head -n 1")
    assert done.returncode == 0 and done.stderr == b"" and len(records(done.stdout)) == 1


@pytest.mark.slow
def test_sidecars(vlmkit, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name, array in zip(("a.png", "b.png", "b.jpg"), noise(3), strict=True):
        Image.fromarray(array).save(folder / name)
    (folder / "a.txt").write_text("mine\n")
    done = vlmkit("caption", folder, "--sidecar", code=3)
    (row,) = records(done.stdout)
    assert Path(row["image"]).name == "b.jpg" and (folder / "b.txt").read_text() == row["caption"] + "\n"
    assert b"b.png: " in done.stderr and b"b.txt is the sidecar of another" in done.stderr, "two pictures of one stem"
    assert (folder / "a.txt").read_text() == "mine\n", "a file that was there stays"
    assert vlmkit("caption", folder, "--sidecar").stdout == b"", "all have one"
    assert len(records(vlmkit("caption", folder / "a.png", folder / "b.png", "--sidecar", "--force").stdout)) == 2
    assert (folder / "a.txt").read_text() != "mine\n"
    shard = tar(tmp_path / "shard.tar", {"a.png": (folder / "a.png").read_bytes()})
    assert b"no place for a sidecar" in vlmkit("caption", shard, "--sidecar", code=3).stderr
    assert b"--force requires --sidecar" in vlmkit("caption", folder, "--force", code=2).stderr


def test_what_was_done_with_other_words_is_not_done(vlmkit, folder: Path, tmp_path: Path) -> None:
    row = jsonl({"id": "1", "image": str(folder / "a.png"), "question": "x"})
    words = {"caption": [(), ("--prompt", "a red"), ("--length", "short")], "ask": [(), ("--system", "be brief")]}
    for command, runs in words.items():
        for done, how in enumerate(runs, 1):
            for _ in range(2):
                vlmkit(command, *how, "--resume", tmp_path / command, stdin=row)
                assert len(records((tmp_path / command).read_bytes())) == done
    asked = [row.get("asked") for command in words for row in records((tmp_path / command).read_bytes())]
    assert asked == [None, {"prompt": "a red"}, {"length": "short"}, None, {"system": "be brief"}]


def test_what_the_data_have_under_the_name_of_a_result_is_a_reference(vlmkit, folder: Path) -> None:
    row = {"id": "1", "image": str(folder / "a.png"), "question": "x", "answer": "B", "caption": "an owl"}
    asked, captioned = (records(vlmkit(how, stdin=jsonl(row)).stdout)[0] for how in ("ask", "caption"))
    assert asked["answers"] == ["B"] and asked["caption"] == "an owl" and "captions" not in asked
    assert captioned["captions"] == ["an owl"] and captioned["answer"] == "B"
    (again,) = records(vlmkit("ask", stdin=jsonl(asked | {"answers": []})).stdout)
    assert again["answers"] == []
