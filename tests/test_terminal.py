"""What a person sees: on a terminal of 80 columns commands print tables and sentences, on a pipe records as ever."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import inside
import numpy as np
import pexpect
import pytest
from helpers import embedded, jsonl, picture

from vlmkit.search.reference import chance, match_of

STYLE = re.compile(r"\x1b\[[\d;]*m|\x1b\]8;[^\x1b]*\x1b\\")


class Seen(NamedTuple):
    """What a command left on the screen, without styles, and on standard error."""

    code: int
    screen: str
    errors: str
    raw: str


@pytest.fixture
def person(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Seen]:
    """Run a command in `tmp_path` whose standard input and output are a terminal."""

    def look(*arguments: object, columns: int = 80, **variables: str) -> Seen:
        own = environment | {"TERM": "xterm-256color"} | variables
        done = inside.on_terminal([*map(str, arguments)], tmp_path, own, columns)
        raw = done.stdout.decode().replace("\r\n", "\n")
        return Seen(done.returncode, STYLE.sub("", raw), done.stderr.decode(), raw)

    return look


@pytest.fixture
def few(photos: Path, tmp_path: Path) -> Path:
    """A folder of three photographs in the current one."""
    (tmp_path / "few").mkdir()
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        shutil.copy(photos / name, tmp_path / "few" / name)
    return tmp_path / "few"


def test_embed_does_not_fill_a_terminal(person, vlmkit, few: Path) -> None:
    seen = person("embed", "few")
    assert (seen.code, seen.screen) == (2, "") and seen.errors.count("\n") == 1
    assert "| vlmkit index" in seen.errors
    assert "no such file" in person("embed", "fwe").errors, "a wrong name comes first"
    assert person("embed", "-m", "./none", "few").errors == seen.errors, "nothing is loaded before"
    written = vlmkit("embed", "few").stdout.decode()
    for wish in ("--json", "-o -"):
        seen = person("embed", "few", *wish.split(), "-q")
        assert (seen.code, seen.screen) == (0, written)
    assert '"embedding"' not in person("embed", "few", "--dry-run").screen
    assert person("embed", "few", "--format", "safetensors", "--json").code == 2


def test_labels_in_a_table(person, vlmkit, few: Path) -> None:
    command = "classify few --labels cat,dog,rocket"
    seen = person(*command.split())
    titles, cat, _, rocket = seen.screen.splitlines()
    assert titles.split() == ["picture", "label", "others"]
    assert re.match(r"few/chelsea\.png +cat +\d\d %", cat) and re.match(r"few/rocket\.jpg +rocket +\d+ %", rocket)
    assert person(*command.split(), "--json").screen.encode() == vlmkit(*command.split()).stdout
    (few.parent / "own.jsonl").write_bytes(jsonl({"image": "few/chelsea.png", "label": "dog"}))
    assert re.search(r"cat +\d+ % +labelled dog", person("classify", "own.jsonl", "--labels", "cat,rocket").screen)


def test_captions_and_answers_beside_their_pictures(person, vlmkit, few: Path) -> None:
    seen = person("caption", "few", "--max-tokens", "30", columns=160)
    captions = [
        json.loads(line)["caption"] for line in vlmkit("caption", "few", "--max-tokens", 30).stdout.splitlines()
    ]
    assert [" ".join(line.split()) for line in seen.screen.splitlines()] == [
        f"few/{name} {caption}"
        for name, caption in zip(("chelsea.png", "coffee.png", "rocket.jpg"), captions, strict=True)
    ]
    asked = person("ask", "few", "is it a cat?").screen.splitlines()
    assert asked[0] == "is it a cat?" and [line.split()[0] for line in asked[1:]] == [
        "few/chelsea.png",
        "few/coffee.png",
        "few/rocket.jpg",
    ]
    assert person("ask", "few", "a cat?", "--json").screen.encode() == vlmkit("ask", "few", "a cat?").stdout


def test_rows_come_one_by_one(few: Path, tmp_path: Path, environment) -> None:
    """Pictures are shown while others are still to come."""
    classify = "vlmkit classify --labels cat,rocket -q --batch-size 1 --workers 1"
    names = "for i in {1..40}; do echo few/chelsea.png; done; cat wait; echo few/rocket.jpg"
    line = f"mkfifo wait; {{ {names}; }} | {classify}"
    session = pexpect.spawn("bash", ["-c", line], cwd=str(tmp_path), env=environment | {"TERM": "dumb"}, timeout=60)
    session.expect(r"few/chelsea\.png +cat")
    (tmp_path / "wait").write_text("")
    session.expect(r"few/rocket\.jpg +rocket")
    session.expect(pexpect.EOF)


def test_names_are_shortened_in_the_middle_and_escaped(person, vlmkit, tmp_path: Path) -> None:
    deep = picture(tmp_path / "a_folder_with_a_long_name/and_one_inside/with_a_picture/flower.png")
    odd = picture(tmp_path / "a\nb\x1b[31m.png")
    wide = picture(tmp_path / ("東京" * 20 + ".png"))
    vlmkit("index", stdin=jsonl(*(embedded(str(p), [1, i / 10]) for i, p in enumerate((deep, odd, wide)))))
    seen = person("search", "--like", odd, columns=60)
    assert "a_folder_with_a" in seen.screen and re.search(r"…\S*/flower\.png$", seen.screen, re.MULTILINE)
    assert "\x1b]8;" in seen.raw and "a_folder_with_a_long_name/and_one_inside/with_a_picture/flower.png" in seen.raw
    assert max(len(line) + len(re.findall("[東京]", line)) for line in seen.screen.splitlines()[1:]) <= 60
    seen = person("search", "--like", deep)
    assert "a\\nb\\x1b[31m.png" in seen.screen and "\x1b[31m" not in seen.raw


def test_no_style_where_no_color_is_set(person, few: Path) -> None:
    assert "\x1b" not in person("classify", "few", "--labels", "cat,dog", NO_COLOR="1").raw
    assert "\x1b[1m" in person("classify", "few", "--labels", "cat,dog").raw


def test_facts_of_an_index(person, vlmkit, tmp_path: Path) -> None:
    vlmkit("index", stdin=jsonl(embedded("/gone/a.png", [1, 0]), embedded("/gone/b.png", [0, 1])))
    facts = dict(line.split(maxsplit=1) for line in person("index", "--info", columns=200).screen.splitlines())
    info = json.loads(vlmkit("index", "--info").stdout)
    assert facts["records"] == "2" and facts["type"] == "flat" and facts["model"] == info["model"]
    assert json.loads(person("index", "--info", "--json").screen) == info
    seen = person("index", "--prune", "/gone", "--dry-run", "--force")
    assert (seen.code, seen.screen.split()) == (0, ["/gone/a.png", "/gone/b.png"])
    assert "2 records would go" in seen.errors


def test_facts_of_a_data_set(person, vlmkit) -> None:
    screen = person("download", "--card", "easy-vqa").screen
    assert re.search(r"^licence +MIT$", screen, re.MULTILINE) and re.search(r"^bytes +3\.2 MB$", screen, re.MULTILINE)
    assert json.loads(person("download", "--card", "easy-vqa", "--json").screen)["licence"] == "MIT"


def test_data_sets_and_models_in_two_tables(person) -> None:
    screen = person("download", "--list").screen
    assert (
        screen.index("Data sets\n")
        < screen.index("coco-captions")
        < screen.index("Models\n")
        < screen.index("clip-b32")
    )
    assert "?" not in screen.replace("on the picture?", "picture") and re.search("(?m)^smolvlm-256m +513.0 MB", screen)


def test_facts_of_a_plan(person, few: Path) -> None:
    (few / "captions.jsonl").write_bytes(jsonl({"image": "chelsea.png", "captions": ["a cat"]}))
    screen = person("train", "align", few / "captions.jsonl", "--preset", "debug", "--dry-run").screen
    assert re.search("(?m)^total parameters +[0-9,]+$", screen) and "{" not in screen


def test_how_good_a_match_is(person, vlmkit, few: Path, photo_rows: bytes) -> None:
    vlmkit("index", stdin=photo_rows)
    seen = person("search", "a cat", "-k", "3")
    titles, *rows = seen.screen.splitlines()
    assert titles.split() == ["rank", "score", "match", "picture"] and seen.errors == ""
    assert rows[0].split()[2] == "strong" and rows[0].endswith("chelsea.png")
    seen = person("search", "a spreadsheet", "-k", "3")
    assert {row.split()[2] for row in seen.screen.splitlines()[1:]} == {"weak"}
    assert "no better than chance" in seen.errors and seen.errors.count("\n") == 1
    assert person("search", "a spreadsheet", "-q").errors == ""
    assert "match" not in person("search", "--image", few / "chelsea.png").screen
    assert "relative  match" in person("search", "a cat", "--relative").screen
    hits = vlmkit("search", "a cat", "-k", 3)
    assert hits.stderr == b"" and b'"match"' not in hits.stdout and b'"relative"' not in hits.stdout
    assert person("search", "a cat", "-k", "3", "--json").screen.encode() == hits.stdout


def test_chance_is_that_of_the_best_of_many() -> None:
    """Held against draws: of pictures that show nothing like the query the best is random."""
    best = np.random.default_rng(0).standard_normal((4000, 50)).max(1)
    for level in (1.0, 2.0, 2.5, 3.0):
        assert chance(level, 50) == pytest.approx((best >= level).mean(), abs=0.02)
    assert chance(-9, 1) == pytest.approx(1) and chance(40, 10**9) == 0
    assert [match_of(score, 1000) for score in (5, 4, 3)] == ["strong", "good", "weak"]
    assert match_of(3, 15) == "good", "the best of few has less luck"


def test_nothing_found_says_why(vlmkit, person) -> None:
    rows = [{"id": "a", "width": 10, "embedding": [1, 0]}, {"id": "b", "width": 20, "embedding": [0, 1]}]
    vlmkit("index", stdin=jsonl(*rows))

    def why(*arguments: object) -> str:
        done = vlmkit("search", *arguments, code=1)
        assert done.stdout == b"" and done.stderr.count(b"\n") == 1
        assert vlmkit("search", *arguments, "-q", code=1).stderr == b""
        seen = person("search", *arguments)
        assert (seen.code, seen.screen, seen.errors.encode()) == (1, "", done.stderr)
        return done.stderr.decode()

    assert "the best score among 2 records is 0.000" in why("--like", "a", "--min-score", 0.5)
    assert "none of 2 records has width>20" in why("--like", "a", "--where", "width>20")
    assert "no two of 2 records are copies at --threshold 0.95" in why("--duplicates")
    assert "no other record" in why("--like", "a", "--where", "width=10")
    vlmkit("index", "--remove", "a", "--remove", "b")
    assert "is empty" in why("--duplicates")


def test_the_page_is_written_though_the_reader_goes_away(shell, vlmkit, tmp_path: Path) -> None:
    rows = [embedded(f"/{i}{'x' * 500}.png", [1, i / 1000]) for i in range(600)]
    vlmkit("index", stdin=jsonl(*rows, embedded("q", [1, 0])))
    vlmkit("search", "--like", "q", "-k", 600, "--html", "whole.html")
    done = shell("vlmkit search --like q -k 600 --html page.html | head -1")
    assert (done.returncode, done.stderr, done.stdout.count(b"\n")) == (0, b"", 1)
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "whole.html").read_bytes()
