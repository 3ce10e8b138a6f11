"""INPUT in its awkward forms: names, records, tar files, what an index holds already, and bytes that mean harm."""

import io
import json
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import embedded, jpeg, jsonl, picture, records, tar, vector
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmkit.errors import VlmkitError
from vlmkit.io.blobs import pack, read_blobs
from vlmkit.io.inputs import Item, read_inputs
from vlmkit.io.records import Failed, dumps
from vlmkit.io.sources import PictureError, open_source

IN_A_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def packed(members: dict[str, bytes], form: str = "w") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=form) as file:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1_000_000_000
            file.addfile(member, io.BytesIO(content))
    return data.getvalue()


def test_tar_in_a_tar(vlmkit, tmp_path: Path) -> None:
    inner = packed({"a.jpg": jpeg("green"), "a.json": b'{"captions":["green"]}', "deep.tar": packed({"b.jpg": jpeg()})})
    outer = tar(tmp_path / "outer.tar", {"0.jpg": jpeg("blue"), "in/inner.tar": inner, "z.jpg": jpeg("white")})
    found = records(vlmkit("embed", "outer.tar").stdout)
    names = ["0.jpg", "in/inner.tar/a.jpg", "in/inner.tar/deep.tar/b.jpg", "z.jpg"]
    assert [row["id"] for row in found] == [f"{outer}/{name}" for name in names]
    assert found[1]["captions"] == ["green"] and found[1]["mtime"] == 1_000_000_000
    again = records(vlmkit("embed", stdin=jsonl(*({"image": row["image"]} for row in found))).stdout)
    assert [row["embedding"] for row in again] == [row["embedding"] for row in found]
    vlmkit("index", "-i", "./i", stdin=jsonl(*found))
    hit = vlmkit("search", "-i", "./i", "--image", f"{outer}/in/inner.tar/a.jpg", "-k", 1, "-l").stdout
    assert hit.decode().strip() == f"{outer}/in/inner.tar/a.jpg"


def test_members_with_a_leading_dot_and_hidden_ones(vlmkit, tmp_path: Path) -> None:
    """`tar cf x.tar .` writes ./a.jpg; what a Mac adds is hidden."""
    tar(tmp_path / "s.TAR", {"./a.jpg": jpeg("green"), "./._a.jpg": b"\0", ".cache/b.jpg": jpeg(), "../c.jpg": jpeg()})
    found = records(vlmkit("embed", "s.TAR").stdout)
    assert [row["image"] for row in found] == [f"{tmp_path}/s.TAR/a.jpg", f"{tmp_path}/s.TAR/c.jpg"]
    again = records(vlmkit("embed", stdin=jsonl(*found)).stdout)
    assert again == found


def test_damaged_and_packed_tars(vlmkit, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(packed({"a.jpg": jpeg(), "b.jpg": jpeg(size=(300, 200))})[:3000])
    (tmp_path / "text.tar").write_bytes(b"no tar at all" * 100)
    for name in ("x.tar.gz", "x.tgz", "renamed.tar"):
        (tmp_path / name).write_bytes(packed({"a.jpg": jpeg()}, "w:gz"))
    names = ["cut.tar", "text.tar", "x.tar.gz", "x.tgz", "renamed.tar"]
    done = vlmkit("embed", *names, "--errors", "bad.jsonl", code=3)
    assert [Path(row["image"]).name for row in records(done.stdout)] == ["a.jpg"]
    errors = {Path(row["id"]).name: row["error"] for row in records((tmp_path / "bad.jsonl").read_bytes())}
    assert errors.keys() == set(names)
    assert "unexpected end" in errors["cut.tar"] and "damaged" in errors["text.tar"]
    assert all("unpack it to .tar first" in errors[name] for name in names[2:])


def test_tars_without_end_are_no_endless_loop(vlmkit, tmp_path: Path) -> None:
    data = packed({"a.jpg": jpeg()})
    for _ in range(12):
        data = packed({"t.tar": data})
    (tmp_path / "many.tar").write_bytes(data)
    assert b"8 tar files inside each other" in vlmkit("embed", "many.tar", code=2).stderr


def test_one_bad_link_does_not_hide_its_folder(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    (tmp_path / "in/circle").symlink_to("circle")
    assert len(records(vlmkit("embed", "in").stdout)) == 1


def test_changed_is_what_is_new_or_differs(vlmkit, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"in/{name}.png")
    members = {"x.jpg": jpeg("green"), "y.jpg": jpeg("blue")}
    tar(tmp_path / "in/s.tar", members)
    first = vlmkit("embed", "--changed", "./i", "in").stdout
    assert first == vlmkit("embed", "in").stdout
    vlmkit("index", "-i", "./i", stdin=first)
    assert vlmkit("embed", "--changed", "./i", "in", "-o", "none.jsonl").stdout == b""
    assert (tmp_path / "none.jsonl").read_bytes() == b""
    os.utime(tmp_path / "in/a.png", (1, 1))
    before = (tmp_path / "in/b.png").stat()
    picture(tmp_path / "in/b.png", size=(400, 300))
    os.utime(tmp_path / "in/b.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    picture(tmp_path / "in/new.png")
    tar(tmp_path / "in/s.tar", members | {"y.jpg": jpeg("blue", (80, 60))})
    found = records(vlmkit("embed", "--changed", "./i", "in").stdout)
    assert [Path(row["image"]).name for row in found] == ["a.png", "b.png", "new.png", "y.jpg"]


def test_changed_neither_opens_what_is_unchanged_nor_loads_the_model(vlmkit, tmp_path: Path) -> None:
    """The index holds another hash, which whoever opens the picture sees; nobody knows the model."""
    picture(tmp_path / "in/a.png")
    (row,) = records(vlmkit("embed", "in").stdout)
    vlmkit("index", "-i", "./i", stdin=jsonl(row | {"hash": "0" * 32}))
    assert vlmkit("embed", "--changed", "./i", "-m", "nobody", "in").stdout == b""
    (tmp_path / "in/dangling.png").symlink_to("nothing")
    vlmkit("embed", "--changed", "./i", "in", code=3)
    vlmkit("embed", "--changed", "./i", "in/dangling.png", code=2)


def nightly(vlmkit, *flags: str) -> tuple[bytes, bytes]:
    """What the nightly job embeds and says."""
    found = vlmkit("embed", "--changed", "./i", "in")
    vlmkit("index", "-i", "./i", *flags, stdin=found.stdout)
    return found.stdout, found.stderr


def test_content_decides_where_time_and_size_are_kept(vlmkit, tmp_path: Path) -> None:
    path = tmp_path / "in/a.bmp"
    picture(path, "red", size=(16, 16))
    before = nightly(vlmkit)[0]
    facts = path.stat()
    path.chmod(0o600)
    assert nightly(vlmkit) == (b"", b"")
    picture(path, "blue", size=(16, 16))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    (old,), (new,) = records(before), records(nightly(vlmkit)[0])
    assert [new[name] == old[name] for name in ("mtime", "bytes", "hash", "embedding")] == [True, True, False, False]
    assert nightly(vlmkit) == (b"", b"")


def test_known_content_keeps_its_vector_and_fields(vlmkit, tmp_path: Path) -> None:
    """Moved, copied and touched files, also out of a tar; the vectors in the index are marked by hand."""
    for name, color in (("moved", "red"), ("copied", "green"), ("touched", "blue")):
        picture(tmp_path / f"in/{name}.png", color)
    tar(tmp_path / "in/s.tar", {"m.jpg": jpeg("pink")})
    rows = records(vlmkit("embed", "in").stdout)
    marks = [[float(i == n) for i in range(len(vector(rows[0])))] for n in range(4)]
    marked = [row | {"embedding": mark, "note": Path(row["id"]).stem} for row, mark in zip(rows, marks, strict=True)]
    vlmkit("index", "-i", "./i", stdin=jsonl(*marked))
    (tmp_path / "in/sub").mkdir()
    (tmp_path / "in/moved.png").rename(tmp_path / "in/sub/x.png")
    (tmp_path / "in/sub/y.png").write_bytes((tmp_path / "in/copied.png").read_bytes())
    os.utime(tmp_path / "in/touched.png", (1, 1))
    tar(tmp_path / "in/t.tar", {"n.jpg": jpeg("pink")})
    (tmp_path / "in/s.tar").unlink()
    picture(tmp_path / "in/new.png", "white")
    assert len(records(vlmkit("embed", "--changed", "./i", "in", "--dry-run", "-m", "nobody").stdout)) == 5
    found, told = nightly(vlmkit, "--prune", "in")
    by_name = {Path(row["id"]).name: row for row in records(found)}
    assert told.count(b"\n") == 1 and b"2 moved, 2 copied or touched" in told
    noted = {"x.png": "moved", "y.png": "copied", "touched.png": "touched", "n.jpg": "m", "new.png": None}
    assert {name: row.get("note") for name, row in by_name.items()} == noted
    expected = {row["note"]: row["embedding"] for row in marked}
    assert all(vector(row).tolist() == expected[row["note"]] for row in by_name.values() if "note" in row)
    assert by_name["touched.png"]["mtime"] == 1
    assert len(records(vlmkit("index", "-i", "./i", "--dump").stdout)) == 6
    assert nightly(vlmkit) == (b"", b"")


def test_a_vector_is_kept_only_if_it_is_there_and_of_the_model(vlmkit, tmp_path: Path) -> None:
    (row,) = records(vlmkit("embed", str(picture(tmp_path / "in/a.png"))).stdout)
    own = [1.0] + [0.0] * (len(vector(row)) - 1)
    (kept,) = records(vlmkit("embed", stdin=jsonl(row | {"embedding": own})).stdout)
    assert vector(kept).tolist() == own
    without = {name: value for name, value in row.items() if name != "embedding"}
    for other in (without, row | {"embedding": own, "model": "other@0123456789ab"}, without | {"embedding": None}):
        assert records(vlmkit("embed", stdin=jsonl(other)).stdout) == [row]


def test_changed_texts(vlmkit) -> None:
    vlmkit("index", "-i", "./i", stdin=vlmkit("embed", "--text", stdin=b"one\ntwo\n").stdout)
    assert [r["id"] for r in records(vlmkit("embed", "--changed", "./i", "--text", stdin=b"two\nthree\n").stdout)] == [
        "three"
    ]


def test_floats(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (packed_form,) = records(vlmkit("embed", "a.png").stdout)
    (listed,) = records(vlmkit("embed", "a.png", "--floats").stdout)
    assert np.array_equal(np.array(listed["embedding"]).astype(np.float16), vector(packed_form).astype(np.float16))
    for name, record in (("one", packed_form), ("two", listed)):
        vlmkit("index", "-i", f"./{name}", stdin=jsonl(record))
    vectors = [next((tmp_path / name).glob("vectors*")).read_bytes() for name in ("one", "two")]
    assert vectors[0] == vectors[1]
    assert b"--floats" in vlmkit("embed", "a.png", "--floats", "--format", "safetensors", code=2).stderr


def test_images_folder(vlmkit, tmp_path: Path) -> None:
    """Relative ones are looked up from the file's folder, from the current one when piped, or from --images."""
    for folder in (".", "data", "other"):
        picture(tmp_path / folder / "a.png")
        picture(tmp_path / folder / "sub/b.png")
    rows = jsonl({"image": "a.png"}, {"image": "sub/../sub/b.png"}, {"image": str(tmp_path / "a.png")})
    (tmp_path / "data/rows.jsonl").write_bytes(rows)

    def images(*arguments: str, stdin: bytes = b"") -> list[str]:
        found = records(vlmkit("embed", *arguments, stdin=stdin).stdout)
        return [os.path.relpath(row["image"], tmp_path) for row in found]

    assert images("data/rows.jsonl") == ["data/a.png", "data/sub/b.png", "a.png"]
    assert images(stdin=rows) == images("-", stdin=rows) == ["a.png", "sub/b.png", "a.png"]
    assert images("--images", "other", "data/rows.jsonl") == ["other/a.png", "other/sub/b.png", "a.png"]
    assert images("--images", "other", stdin=rows) == ["other/a.png", "other/sub/b.png", "a.png"]
    assert images("--images", "other", stdin=b"data/rows.jsonl\n") == ["other/a.png", "other/sub/b.png", "a.png"]
    assert b"no such folder" in vlmkit("embed", "--images", "nowhere", stdin=rows, code=2).stderr


def test_labels_from_standard_input(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    found = records(vlmkit("classify", "a.png", "--labels-file", "-", stdin="\ufeffred\nblue\n".encode()).stdout)
    assert {label["label"] for label in found[0]["labels"]} == {"red", "blue"}
    assert b"cannot both" in vlmkit("classify", "--labels-file", "-", stdin=b"red\n", code=2).stderr


NAMES = st.binary(min_size=1, max_size=40).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))


@pytest.mark.slow
@IN_A_FOLDER
@given(st.lists(NAMES, min_size=1, max_size=8, unique=True))
def test_any_name_is_an_item_or_a_failure(tmp_path_factory, names: list[bytes]) -> None:
    folder = os.fsencode(tmp_path_factory.mktemp("names"))
    shown = [name + b".png" for name in names if not name.startswith(b".")]
    for name in shown:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"x")
    found = list(read_inputs([os.fsdecode(folder)]))
    assert len(found) == len(shown)
    for item in found:
        if isinstance(item, Item):
            assert os.fsencode(item.record["image"]) in {os.path.join(folder, name) for name in shown}
            assert item.locate().size == 1
            dumps(item.record)
        else:
            dumps(item.as_record())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["id", "image", "text", "captions", "embedding", "mtime", "other"])


@IN_A_FOLDER
@given(st.lists(st.dictionaries(KEYS, JSON, max_size=4) | JSON, max_size=4), st.binary(max_size=20))
def test_any_json_is_items_and_failures(tmp_path_factory, values: list, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps(value).encode() for value in values]
    path.write_bytes(b'{"text":"first"}\n' + b"\n".join([*lines, noise]) + b"\n")
    for item in read_inputs([str(path)]):
        if isinstance(item, Failed):
            dumps(item.as_record())
            continue
        dumps(item.record)
        try:
            if "image" in item.record:
                item.locate()
        except PictureError as error:
            assert str(error)


@IN_A_FOLDER
@given(st.data())
def test_a_damaged_tar_is_items_and_failures(tmp_path_factory, data: st.DataObject) -> None:
    whole = packed({"a.jpg": b"1" * 700, "a.json": b'{"x":1}', "in.tar": packed({"b.jpg": b"2"}), "c.txt": b"hi"})
    start = data.draw(st.integers(0, len(whole) - 1))
    noise = data.draw(st.binary(max_size=600))
    damaged = (whole[:start] + noise + whole[start + len(noise) :])[: data.draw(st.integers(0, len(whole)))]
    path = tmp_path_factory.mktemp("tars") / "t.tar"
    path.write_bytes(damaged)
    for item in read_inputs([str(path)]):
        if isinstance(item, Item):
            assert len(open_source(item.record["image"]).read()) == item.locate().size
        else:
            dumps(item.as_record())


def _blob() -> bytes:
    rows = [embedded(f"n{i}", [1.0, 0.5, float(i)]) for i in range(3)]
    rows = [row | {"embedding": np.array(row["embedding"], np.float16)} for row in rows]
    return b"".join(pack(rows))


@given(st.data())
@settings(max_examples=200)
def test_damaged_safetensors_is_an_error_in_one_line(data: st.DataObject) -> None:
    blob = bytearray(_blob())
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(blob[: data.draw(st.integers(1, len(blob)))])
    try:
        for record in read_blobs(io.BufferedReader(io.BytesIO(cut)), "x"):  # type: ignore[arg-type]
            assert isinstance(record, dict)
    except VlmkitError as error:
        assert "\n" not in str(error)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), JSON | st.lists(st.integers(), max_size=3)))
@settings(max_examples=200)
def test_safetensors_headers_that_lie(fields: dict) -> None:
    sound = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}
    header = {"embedding": sound | fields, "records": {"dtype": "U8", "shape": [6], "data_offsets": [12, 18]}}
    text = json.dumps(header).encode()
    blob = struct.pack("<Q", len(text)) + text + bytes(12) + b"{}\n{}\n"
    try:
        assert len(list(read_blobs(io.BufferedReader(io.BytesIO(blob)), "x"))) == 2  # type: ignore[arg-type]
    except VlmkitError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("depth", [150, 300, 900, 5000])
def test_deep_json_fails_alone(vlmkit, depth: int) -> None:
    deep = b'{"text":"a","x":' + b"[" * depth + b"]" * depth + b"}\n"
    done = vlmkit("embed", stdin=deep + b'{"text":"b"}\n', code=0 if depth < 200 else 3)
    assert [row["text"] for row in records(done.stdout)] == (["a", "b"] if depth < 200 else ["b"])


@pytest.mark.parametrize(
    "data",
    [
        b"\x10\0\0\0\0\0\0\0" + b'{"embedding":1}\n',
        b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b'{"a":1}',
        _blob()[:-5],
        _blob().replace(b'"shape":[3,3]', b'"shape":[9,1]'),
        b"\x93NUMPY\x01\0 binary \0\0",
        b"[" * 100_000,
        b"[1, 2, {]",
    ],
)
def test_damaged_standard_input_is_one_line(vlmkit, data: bytes) -> None:
    done = vlmkit("embed", stdin=data, code=2)
    assert done.stdout == b"" and len(done.stderr.splitlines()) == 1 and b"defect" not in done.stderr


def test_a_missing_null_flag_is_hinted_at(vlmkit, shell, tmp_path: Path) -> None:
    names = [picture(tmp_path / "a folder of pictures" / name) for name in ("a.png", "b.png")]
    piped = b"".join(bytes(name) + b"\0" for name in names)
    for command in (["embed"], ["caption"], ["ask", "what?"], ["classify", "--labels", "a,b"]):
        done = vlmkit(*command, stdin=piped, code=2)
        assert done.stdout == b"" and done.stderr.count(b"\n") == 1 and b"add -0" in done.stderr
    assert b"add -0" in vlmkit("embed", "--text", stdin=b"one text\0another", code=2).stderr
    assert b"binary" in vlmkit("embed", stdin=bytes(100), code=2).stderr
    assert b"leave out -0" in vlmkit("embed", "-0", stdin=b"x.png\ny.png\n", code=2).stderr
    picture(tmp_path / "odd/a\nb\nc.png")
    done = vlmkit("embed", stdin=b"odd/a\nb\nc.png\n", code=3)
    assert b"-print0 and -0" in done.stderr.splitlines()[-1] and b"-print0" not in done.stderr.splitlines()[0]
    assert shell("find odd -type f -print0 | vlmkit embed -0").returncode == 0


def test_a_table_is_records(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "red")
    (tmp_path / "q.csv").write_text("image,question,answers\na.png,what color is it?,red\na.png,,blue\n")
    asked = vlmkit("ask", "q.csv", code=3)
    (row,) = records(asked.stdout)
    assert row["question"] == "what color is it?" and row["answers"] == "red"
    assert row["image"] == str(tmp_path / "a.png")
    assert b"no question" in asked.stderr
    (tmp_path / "texts.tsv").write_text("a dog\ta cat\n")
    assert [row["text"] for row in records(vlmkit("embed", "--text", "texts.tsv").stdout)] == ["a dog\ta cat"]


def test_more_options_than_letters_fail(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "red")
    row = {"image": "a.png", "question": "which?", "options": [f"thing {number}" for number in range(27)]}
    (tmp_path / "q.jsonl").write_bytes(jsonl(row, row | {"id": "b", "options": ["one", "two"]}))
    assert b"more than 26 options" in vlmkit("ask", "q.jsonl", code=3).stderr


def test_a_name_that_is_nearly_there(vlmkit, tmp_path: Path) -> None:
    """Percent-encoded, with backslashes, in another Unicode form or case: what is there is named, as INPUT, in a list
    and in a record.
    """
    folder = tmp_path / "My Pictures"
    folder.mkdir()
    for name in ("cafe\u0301 1.jpg", "b.JPG"):
        (folder / name).write_bytes(jpeg())
    wrong = {
        "My%20Pictures/b.JPG": "b.JPG",
        "My Pictures\\b.jpg": "b.JPG",
        "my pictures/caf\u00e9 1.jpg": "cafe\u0301 1.jpg",
    }
    for name, right in wrong.items():
        told = f"but there is My Pictures/{right}".encode()
        assert told in vlmkit("embed", name, code=2).stderr
        assert told in vlmkit("embed", code=2, stdin=name.encode()).stderr
    record = {"id": "1", "image": "My%20Pictures/b.JPG"}
    assert (
        b"but there is " + bytes(folder / "b.JPG") in vlmkit("embed", code=2, stdin=json.dumps(record).encode()).stderr
    )
    assert b"but there is" not in vlmkit("embed", "My Pictures/c.jpg", code=2).stderr


def test_a_list_of_names_is_not_a_picture(vlmkit, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    assert b"list.txt: text, not a picture" in vlmkit("embed", "list.txt", code=2).stderr
