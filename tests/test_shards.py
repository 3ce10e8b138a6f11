"""--out-dir: one output a shard, done once, by several processes, and retried alone."""

import json
import signal
import subprocess
import time
from itertools import chain
from pathlib import Path

import pexpect
import pytest
from conftest import SCRIPT
from helpers import jpeg, records, tar

from vlmkit.errors import VlmkitError
from vlmkit.io.shards import Part, expand_shards, output_names
from vlmkit.io.terminal import Output


def shards(folder: Path, count: int = 3, pictures: int = 2) -> None:
    folder.mkdir(exist_ok=True)
    for n in range(count):
        colors = [f"rgb({80 * n},{40 * k},90)" for k in range(pictures)]
        tar(folder / f"x-{n:03}.tar", {f"{n}{k}.jpg": jpeg(color) for k, color in enumerate(colors)})


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shards(Path("in"))
    assert expand_shards(["s3://bucket/x-{08..11}.tar"]) == [f"s3://bucket/x-{n:02}.tar" for n in range(8, 12)]
    assert expand_shards(["in/x-*.tar"]) == ["in/x-000.tar", "in/x-001.tar", "in/x-002.tar"]
    Path("in/a{1,2}.tar").touch()
    assert expand_shards(["in/a{1,2}.tar"]) == ["in/a{1,2}.tar"], "what is there is no pattern"
    Path("list.txt").write_text("in/x-{001,002}.tar\n\nhttps://example.org/y.tar\n")
    assert expand_shards(["list.txt"]) == ["in/x-001.tar", "in/x-002.tar", "https://example.org/y.tar"]
    for wrong in (["in/z-*.tar"], ["in/x-000.tar", "in/x-*.tar"], ["{1..9999999}.tar"]):
        with pytest.raises(VlmkitError):
            expand_shards(wrong)


def test_parts_share_out_all() -> None:
    parts = [Part.of(f"{n}/3").deal(list(range(10))) for n in (1, 2, 3)]
    assert sorted(chain(*parts)) == list(range(10)) and max(map(len, parts)) - min(map(len, parts)) <= 1
    for wrong in ("0/3", "4/3", "1", "1/0", "a/b"):
        with pytest.raises(VlmkitError, match="--shard"):
            Part.of(wrong)


def test_equal_names_of_shards() -> None:
    assert output_names(["a/x.tar", "b/x.tar"]) == {"a/x.tar": "a-x", "b/x.tar": "b-x"}
    assert output_names(["s3://b/x.tar", "y.tar"]) == {"s3://b/x.tar": "x", "y.tar": "y"}
    with pytest.raises(VlmkitError, match="two shards"):
        output_names(["x.tar", "x.tgz"])


@pytest.mark.parametrize(("command", "words"), [("embed", []), ("caption", []), ("ask", ["is there a cat?"])])
def test_in_parts_as_in_one(vlmkit, tmp_path: Path, command: str, words: list[str]) -> None:
    """The outputs of two parts are those of one run over all, and a summary comes once the last one is there."""
    shards(tmp_path / "in")
    names = [f"in/x-{n:03}.tar" for n in range(3)]
    whole = vlmkit(command, *names, *words, "--json").stdout
    first = vlmkit(command, "in/x-{000..002}.tar", *words, "--out-dir", "out", "--shard", "1/2")
    assert first.stdout == b"" and b"in/x-002.tar: 2 written; 2 of 2 shards" in first.stderr
    assert not (tmp_path / "out/_DONE").exists()
    second = vlmkit(command, "in/x-*.tar", *words, "--out-dir", "out", "--shard", "2/2")
    assert b"out: all is done: 3 shards, 6 written, 0 failed" in second.stderr and (tmp_path / "out/_DONE").exists()
    made = sorted((tmp_path / "out").glob("x-*.jsonl"))
    assert b"".join(path.read_bytes() for path in made) == whole
    before = [path.stat().st_mtime_ns for path in made]
    again = vlmkit(command, "in/x-*.tar", *words, "--out-dir", "out")
    assert b"shards done before: 3" in again.stderr and [path.stat().st_mtime_ns for path in made] == before
    other = ["--text"] if command == "embed" else ["--max-tokens", 3]
    told = vlmkit(command, "in/x-*.tar", *words, "--out-dir", "out", *other, code=2).stderr
    assert b"was made with another" in told


def test_a_damaged_shard_is_retried_alone(vlmkit, tmp_path: Path) -> None:
    shards(tmp_path / "in")
    good = (tmp_path / "in/x-001.tar").read_bytes()
    (tmp_path / "in/x-001.tar").write_bytes(good[:1200])
    tar(tmp_path / "in/x-000.tar", {"a.jpg": jpeg(), "b.jpg": b"not a picture"})
    words = ("embed", "in/x-{000..003}.tar", "--out-dir", "out")
    done = vlmkit(*words, code=3).stderr.decode()
    assert "in/x-000.tar: 1 written, 1 failed" in done and "in/x-001.tar: it could not be read to its end" in done
    assert "in/x-003.tar: no such file" in done and "shards that failed: 2" in done
    (failed,) = records((tmp_path / "out/x-000.errors.jsonl").read_bytes())
    assert failed["id"].endswith("b.jpg") and not (tmp_path / "out/x-001.jsonl").exists()
    (tmp_path / "in/x-001.tar").write_bytes(good)
    tar(tmp_path / "in/x-003.tar", {"c.jpg": jpeg("blue")})
    done = vlmkit(*words).stderr.decode()
    assert "2 of 2 shards" in done and "shards done before: 2; all is done: 4 shards, 6 written, 1 failed" in done
    assert json.loads((tmp_path / "out/_summary.json").read_bytes()) == {"shards": 4, "written": 6, "failed": 1}


def test_what_is_of_no_use_is_told(vlmkit, tmp_path: Path) -> None:
    shards(tmp_path / "in", count=4, pictures=1)
    alone = vlmkit("embed", "in/x-*.tar", "--out-dir", "out", "--shard", "5/5")
    assert b"part 5 of 5 has no shards: there are 4" in alone.stderr and b"0:00" not in alone.stderr
    assert b"in is not empty, and no folder of --out-dir" in vlmkit("embed", "in", "--out-dir", "in", code=2).stderr
    tar(tmp_path / "in/x-001.tar", {"a.jpg": b"no picture"})
    said = vlmkit("embed", "in/x-*.tar", "--out-dir", "out", code=3).stderr
    assert b"in/x-001.tar: none of its 1 records could be used: no output, it is tried again" in said
    assert b"out: not all shards are done (there is no _DONE)" in vlmkit("index", "-i", "./i", "out").stderr
    (tmp_path / "words.txt").write_text("a cat\na dog\n")
    vlmkit("embed", "--text", "words.txt", "--out-dir", "words")
    assert [row["text"] for row in records((tmp_path / "words/words.jsonl").read_bytes())] == ["a cat", "a dog"]


def test_an_error_that_all_shards_have_ends_the_run(vlmkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, after a shard that fits."""
    shards(tmp_path / "in", count=6, pictures=1)
    written = Output.write

    def full(output: Output, data: bytes) -> None:
        if "x-000" not in output.name:
            raise VlmkitError("cannot write: No space left on device", "free some space")
        written(output, data)

    monkeypatch.setattr(Output, "write", full)
    said = vlmkit("embed", "in/x-*.tar", "--out-dir", "out", code=2).stderr.decode()
    assert "the last 3 shards failed alike: cannot write: No space left on device (free some space)" in said
    assert "x-004" not in said and (tmp_path / "out/x-000.jsonl").exists()


def test_the_bar_is_over_all_shards(environment: dict[str, str], tmp_path: Path) -> None:
    shards(tmp_path / "in")
    screen = pexpect.spawn(str(SCRIPT), ["embed", "in/x-*.tar", "--out-dir", "out"], env=environment, cwd=tmp_path)
    screen.expect(r"1/3 \[[^]]*shards", timeout=60)
    screen.expect(r"x-000.tar: 2 written; 1 of 3 shards, .* a second, .* left")
    screen.expect("all is done")
    screen.expect(pexpect.EOF)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on(vlmkit, environment: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    shards(tmp_path / "in", count=20, pictures=6)
    words = ["embed", "in/x-*.tar", "--out-dir", "out", "--format", "safetensors"]
    with subprocess.Popen([SCRIPT, *words], env=environment, cwd=tmp_path, stderr=subprocess.PIPE) as run:
        while len(list(tmp_path.glob("out/*.safetensors"))) < 2 or not list(tmp_path.glob("out/_unfinished/.*")):
            assert run.poll() is None
            time.sleep(0.001)
        run.send_signal(number)
    assert run.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    done = len(list(tmp_path.glob("out/*.safetensors")))
    assert 2 <= done < 20, "the work was unfinished"
    left = list(tmp_path.glob("out/_unfinished/.*"))
    assert bool(left) == (number == signal.SIGKILL)
    assert f"shards done before: {done}; all is done: 20 shards, 120 written".encode() in vlmkit(*words).stderr
    assert not (tmp_path / "out/_unfinished").exists()
    vlmkit("embed", "in/x-*.tar", "--out-dir", "once", "--format", "safetensors")
    for path in (tmp_path / "once").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    vlmkit("index", "-i", "./all.index", "out")
    assert b'"count":120' in vlmkit("index", "-i", "./all.index", "--info").stdout


def test_what_does_not_go_together(vlmkit, tmp_path: Path) -> None:
    shards(tmp_path / "in")
    for words in (["-o", "x.jsonl"], ["--dry-run"], ["--errors", "e"], ["--changed", "./i.index"]):
        assert b"cannot be combined with --out-dir" in vlmkit("embed", "in", "--out-dir", "o", *words, code=2).stderr
    assert b"--shard requires --out-dir" in vlmkit("embed", "in", "--shard", "1/2", code=2).stderr
    assert b"needs shards by name" in vlmkit("embed", "--out-dir", "o", code=2, stdin=b"in").stderr
