"""Which files a folder stands for: links, further names, what nobody means, what is left out; and what is piped in."""

import os
import re
from pathlib import Path

import pytest
from helpers import jpeg, jsonl, picture, records, tar

from vlmkit.io.blobs import is_blob
from vlmkit.io.walk import LeftOut, Walk, WalkOptions, normalized_glob


def images(done) -> list[str]:
    return [Path(row["image"]).name for row in records(done.stdout)]


@pytest.fixture
def walk(tmp_path: Path):
    """Paths below a folder, relative to it, and what was left out."""

    def walked(folder: str = "in", **options) -> list[str]:
        walked.left_out = LeftOut()
        found = Walk(str(tmp_path / folder), WalkOptions(**options), walked.left_out)
        return [str(path).removeprefix(f"{tmp_path / folder}/") for path in found]

    return walked


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_behind_links(walk, tmp_path: Path) -> None:
    """A ring of links and a link to the folder above: each file once, by its own name if the walk comes to it."""
    touch(tmp_path / "in/x/1.jpg", tmp_path / "in/y/2.jpg", tmp_path / "out/deep/3.jpg", tmp_path / "out/4.jpg")
    for link, target in {"x/to_y": "../y", "y/to_x": "../x", "a": "../out/deep", "b": "../out", "up": ".."}.items():
        (tmp_path / "in" / link).symlink_to(target)
    assert walk() == ["x/1.jpg", "y/2.jpg"]
    assert str(walk.left_out) == "3 links to folders"
    assert walk(follow=True) == ["a/3.jpg", "b/4.jpg", "x/1.jpg", "y/2.jpg"]
    assert not str(walk.left_out)


def test_a_link_that_is_named_is_followed(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "real/sub/a.png")
    (tmp_path / "way").symlink_to("real")
    assert [row["image"] for row in records(vlmkit("embed", "way").stdout)] == [str(tmp_path / "way/sub/a.png")]


def test_further_names_of_a_file(walk, tmp_path: Path) -> None:
    touch(tmp_path / "in/real.jpg", tmp_path / "out/far.jpg", tmp_path / "in/.store/9f3c", tmp_path / "in/b/hard.jpg")
    (tmp_path / "in/c.jpg").hardlink_to(tmp_path / "in/b/hard.jpg")
    links = {"a.jpg": "real.jpg", "f1.jpg": "../out/far.jpg", "f2.jpg": "../out/far.jpg", "kept.jpg": ".store/9f3c"}
    for link, target in links.items():
        (tmp_path / "in" / link).symlink_to(target)
    assert walk() == ["b/hard.jpg", "f1.jpg", "kept.jpg", "real.jpg"]
    (tmp_path / "in/out").symlink_to("../out")
    assert walk(follow=True) == ["b/hard.jpg", "f1.jpg", "kept.jpg", "real.jpg"]


def test_what_nobody_means_and_what_is_excluded(vlmkit, walk, tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "b.PNG",
        "@eaDir/t.jpg",
        "x/$RECYCLE.BIN/u.jpg",
        "x/node_modules/v.png",
        ".h/w.jpg",
        "x/raw/y.jpg",
    ]
    touch(*(tmp_path / "in" / name for name in names))
    assert walk() == ["a.jpg", "b.PNG", "x/raw/y.jpg"] and walk.left_out.excluded == 3
    assert walk(default_excludes=False) == sorted(names)
    assert walk(exclude=("raw", "*.PNG")) == ["a.jpg"]
    for glob in ("raw", "raw/", "**/raw", "./x/raw", "x/raw/*", "/x"):
        assert walk(exclude=(normalized_glob(glob),)) == ["a.jpg", "b.PNG"]
    assert walk(exclude=(normalized_glob("/raw"),)) == walk(exclude=(normalized_glob("raw/*"),)) == walk()
    assert walk("in/@eaDir") == ["t.jpg"] and walk("in/.h", exclude=(".h",)) == ["w.jpg"]
    tar(tmp_path / "s.tar", {"@eaDir/a.jpg": jpeg(), "in/b.jpg": jpeg(), "in/c.jpg": jpeg()})
    assert images(vlmkit("embed", "s.tar", "--exclude", "c.*")) == ["b.jpg"]


def test_folders_nested_deeper_than_calls_may_be(vlmkit, shell, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "top").mkdir()
    (tmp_path / "make.py").write_text(
        "import os\nos.chdir('top')\nfor _ in range(1500): os.mkdir('d'), os.chdir('d')\n"
        f"os.system('cp {tmp_path}/a.png z.png')"
    )
    made = shell("python3 make.py")
    assert not made.stderr
    try:
        assert images(vlmkit("embed", "top")) == ["z.png"]
    finally:
        shell("rm -r top")  # Python's own removal recurses


@pytest.mark.slow
@pytest.mark.parametrize("command", [["embed"], ["caption"], ["classify", "--labels", "a,b"], ["ask", "--ocr"]])
def test_what_is_not_read_is_told(vlmkit, tmp_path: Path, command: list[str]) -> None:
    picture(tmp_path / "in/a.png")
    names = ["1.XCF", "2.xcf", "x/3.psd", "4.psd", "5.djvu", "n.txt", "n.xmp", ".h.psd"]
    touch(*(tmp_path / "in" / name for name in names))
    command = ["ask", "in", "what is it?"] if command[0] == "ask" else [*command, "in"]
    done = vlmkit(*command)
    assert len(records(done.stdout)) == 1
    line = b"vlmkit: not read: 2 psd, 2 xcf, 1 djvu: "
    assert done.stderr.startswith(line) and done.stderr.count(b"\n") == 1
    assert not vlmkit(*command, "-q").stderr
    assert not vlmkit(*command, "--exclude", "*.[!pt]*").stderr.count(b"xcf")


def test_members_that_are_not_read_are_told(vlmkit, tmp_path: Path) -> None:
    tar(tmp_path / "s.tar", {"a.jpg": jpeg(), "a.json": b"{}", "b.psd": b"8BPS", "c.djvu": b"film"})
    assert b"not read: 1 djvu, 1 psd: " in vlmkit("embed", "s.tar").stderr


def test_links_that_are_not_followed_are_told(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "out/a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to("../out")
    done = vlmkit("embed", "in")
    assert done.stdout == b"" and b"1 link to a folder: follow links with --follow" in done.stderr
    assert images(vlmkit("embed", "in", "--follow")) == ["a.png"]


def test_a_run_ends_with_a_summary(vlmkit, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "@eaDir/c.png"):
        picture(tmp_path / "in" / name)
    touch(tmp_path / "in/c.png", tmp_path / "in/d.psd")
    done = vlmkit("embed", "in", "-v", "-o", "rows.jsonl", code=3)
    expected = rb"vlmkit: 3 read, 2 written, 1 failed, 1 excluded in [0-9.]+ s, [0-9.]+ a second; not read: 1 psd: "
    assert re.match(expected, done.stderr.splitlines()[-1])
    done = vlmkit("index", "-v", "-i", "./i", "rows.jsonl")
    assert re.match(rb"vlmkit: 2 read, 2 written in i in [0-9.]+ s", done.stderr.splitlines()[-1])
    (tmp_path / "in/c.png").unlink()
    assert b"2 read, 0 written, 2 unchanged" in vlmkit("embed", "-v", "--changed", "./i", "in").stderr
    (tmp_path / "in/b.png").unlink()
    assert b"0 written in i, 1 pruned in" in vlmkit("index", "-v", "-i", "./i", "--prune", "in").stderr


def test_known_failures_do_not_count(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "in/good.png")
    touch(tmp_path / "in/bad.jpg")
    tar(tmp_path / "in/s.tar", {"a.jpg": b"no picture", "b.jpg": jpeg()})
    vlmkit("embed", "in", "--errors", "known.jsonl", code=3)
    done = vlmkit("embed", "in", "--ignore", "known.jsonl", "--errors", "again.jsonl")
    assert images(done) == ["good.png", "b.jpg"] and not done.stderr
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "known.jsonl").read_bytes()
    assert b"2 known to fail" in vlmkit("embed", "in", "--ignore", "known.jsonl", "-v").stderr
    vlmkit("embed", "in/bad.jpg", "--ignore", "known.jsonl")
    touch(tmp_path / "in/other.jpg")
    assert b"other.jpg" in vlmkit("embed", "in", "--ignore", "known.jsonl", code=3).stderr
    before = (tmp_path / "in/bad.jpg").stat()
    (tmp_path / "in/bad.jpg").write_bytes(b"")
    os.utime(tmp_path / "in/bad.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
    done = vlmkit("embed", "in", "--ignore", "known.jsonl", code=3)
    assert b"bad.jpg" in done.stderr and b"s.tar" not in done.stderr


@pytest.mark.parametrize("content", [None, b"bad.jpg\n"])
def test_a_list_of_known_failures_must_be_one(vlmkit, tmp_path: Path, content: bytes | None) -> None:
    if content:
        (tmp_path / "known").write_bytes(content)
    done = vlmkit("embed", picture(tmp_path / "a.png"), "--ignore", "known", code=2)
    assert done.stderr.count(b"\n") == 1 and b"give --ignore a file that --errors wrote" in done.stderr


@pytest.mark.slow
def test_names_that_begin_like_something_else(vlmkit, tmp_path: Path) -> None:
    names = ["{a} b.png", "[1] c.png", "BMX track.png", "P6 list.png"]
    for name in names:
        picture(tmp_path / name)
    for first in names:
        rest = [name for name in names if name != first]
        for end, flags in (("\n", []), ("\0", ["-0"])):
            stdin = "".join(name + end for name in [first, *rest]).encode()
            assert images(vlmkit("embed", *flags, stdin=stdin)) == [first, *rest]
    assert images(vlmkit("caption", stdin=b"BMX track.png\n[1] c.png\n")) == ["BMX track.png", "[1] c.png"]
    assert images(vlmkit("caption", "-0", stdin=b"P6 list.png\0{a} b.png\0")) == ["P6 list.png", "{a} b.png"]
    tar(tmp_path / "[2].tar", {"x.jpg": jpeg()})
    assert images(vlmkit("embed", stdin=b"[2].tar/x.jpg\n[1] c.png\n")) == ["x.jpg", "[1] c.png"]
    assert images(vlmkit("embed", stdin=b"\xef\xbb\xbf[1] c.png\nBMX track.png\n")) == ["[1] c.png", "BMX track.png"]


def test_texts_that_begin_like_records(vlmkit, tmp_path: Path) -> None:
    lines = ["{not} JSON", "[1, 2]", '{"text": "x"}']
    stdin = "\n".join(lines).encode()
    assert [row["text"] for row in records(vlmkit("embed", "--text", stdin=stdin).stdout)] == lines
    (tmp_path / "texts").write_bytes(stdin)
    assert [row["text"] for row in records(vlmkit("embed", "--text", "texts").stdout)] == lines
    row = {"text": "x", "image": "none.png", "long": "/" + "y" * 300}
    assert records(vlmkit("embed", stdin=jsonl(row | {"image": None})).stdout)[0]["text"] == "x"
    (tmp_path / "rows").write_bytes(jsonl(row))
    assert [row["text"] for row in records(vlmkit("embed", "--text", "rows").stdout)] == ["x"]


def test_names_are_utf8_in_any_locale(shell, vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "in/Öl 油.png")
    expected = vlmkit("embed", "in").stdout
    assert shell("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 vlmkit embed in").stdout == expected


def test_the_form_of_a_file_follows_its_name(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    rows = vlmkit("embed", "a.png").stdout
    packed = vlmkit("embed", "a.png", "--format", "safetensors").stdout
    vlmkit("embed", "a.png", "-o", "v.safetensors")
    vlmkit("classify", "v.safetensors", "--labels", "x,y", "-o", "c.SAFETENSORS")
    vlmkit("index", "-i", "./i", "v.safetensors")
    vlmkit("index", "-i", "./i", "--dump", "-o", "dump.safetensors")
    for name in ("v.safetensors", "c.SAFETENSORS", "dump.safetensors"):
        assert is_blob((tmp_path / name).read_bytes()) and images(vlmkit("embed", name)) == ["a.png"]
    vlmkit("embed", "a.png", "--format", "jsonl", "-o", "w.safetensors")
    vlmkit("embed", "a.png", "--format", "safetensors", "-o", "w.jsonl")
    assert (tmp_path / "w.safetensors").read_bytes() == rows and is_blob((tmp_path / "w.jsonl").read_bytes())
    assert is_blob(packed)
    vlmkit("caption", "a.png", "-o", "caption.jsonl")
    assert "caption" in records((tmp_path / "caption.jsonl").read_bytes())[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["caption", "a.png", "-o", "x.safetensors"], "safetensors holds vectors, and "),
        (["caption", "a.png", "--resume", "x.safetensors"], "x.safetensors: --resume appends lines"),
        (["embed", "a.png", "-o", "x.safetensors", "--floats"], "--floats requires the format jsonl"),
        (["embed", "a.png", "-o", "x", "--ignore", "./x"], "-o and --ignore are both x: name two files"),
        (["classify", "a.png", "--labels-file", "x"], "x: No such file or directory: name a text file with one label"),
        (["classify", "a.png", "--labels-file", "a.png"], "a.png: the text is not UTF-8: name a text file with one"),
        (["ask", "a.png", "why?", "--constitution", "a.png"], "a.png: the text is not UTF-8: write it like"),
    ],
)
def test_files_that_do_not_fit(vlmkit, tmp_path: Path, words: list[str], line: str) -> None:
    picture(tmp_path / "a.png")
    done = vlmkit(*words, code=2)
    assert done.stderr.decode().startswith(f"vlmkit: {line}") and done.stderr.count(b"\n") == 1
    assert not list(tmp_path.glob("x*"))


def test_a_dry_run_writes_no_file(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    touch(tmp_path / "in/b.djvu")
    (tmp_path / "rows.jsonl").write_text("kept")
    done = vlmkit("embed", "in", "--dry-run", "-m", "nobody", "-o", "rows.jsonl")
    assert images(done) == ["a.png"] and b"1 djvu" in done.stderr
    assert (tmp_path / "rows.jsonl").read_text() == "kept"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "a film"),
        (b"PK\3\4" + bytes(30), "a ZIP archive"),
    ],
)
def test_what_is_named_and_not_read_is_called_what_it_is(vlmkit, tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    assert f"a.bin: {kind}, not a picture" in vlmkit("embed", "a.bin", code=2).stderr.decode()
