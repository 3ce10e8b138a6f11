"""Tar files: damage, links, names and sizes of every form, and the samples that their members are."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from helpers import jpeg, picture, records, tar

from vlmkit.io.inputs import Item, read_inputs
from vlmkit.io.records import Failed, Record
from vlmkit.io.sources import exists, is_gone, open_source
from vlmkit.io.tar import LISTINGS, Sparse

NAMES = ["a", "b", "c", "d", "e"]


def shard(path: Path, names: list[str] = NAMES, form: int = tarfile.GNU_FORMAT) -> list[tarfile.TarInfo]:
    """A tar of one picture a name; returns its members with their places."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as file:
        for number, name in enumerate(names):
            data = jpeg(("red", "green", "blue")[number % 3], (40 + number, 30))
            member = tarfile.TarInfo(f"{name}.jpg")
            member.size, member.mtime = len(data), 1_000_000_000
            file.addfile(member, io.BytesIO(data))
    with tarfile.open(path) as file:
        return file.getmembers()


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def read(path: Path) -> tuple[list[str], list[Failed]]:
    """The names of the pictures that a tar gives, and what failed."""
    found = list(read_inputs([str(path)]))
    items = [item for item in found if isinstance(item, Item)]
    for item in items:
        assert open_source(item.record["image"]).read() == item.locate().read()
    names = [item.record["image"].removeprefix(f"{path}/") for item in items]
    return names, [item for item in found if isinstance(item, Failed)]


def bad_checksum(path: Path, members: list[tarfile.TarInfo]) -> list[str]:
    overwrite(path, members[1].offset + 148, b"no sum!!")
    return ["a", "c", "d", "e"]


def first_header(path: Path, members: list[tarfile.TarInfo]) -> list[str]:
    overwrite(path, 0, b"\xff" * 600)
    return ["b", "c", "d", "e"]


def hole(path: Path, members: list[tarfile.TarInfo]) -> list[str]:
    overwrite(path, members[1].offset, bytes(members[3].offset - members[1].offset))
    return ["a", "d", "e"]


def hole_within_data(path: Path, members: list[tarfile.TarInfo]) -> list[str]:
    overwrite(path, members[2].offset, bytes(members[2].offset_data - members[2].offset))
    return ["a", "b", "d", "e"]


def zeros_to_the_end(path: Path, members: list[tarfile.TarInfo]) -> list[str]:
    overwrite(path, members[2].offset, bytes(20 * 512 + path.stat().st_size - members[2].offset))
    return ["a", "b"]


def cut_inside(path: Path, members: list[tarfile.TarInfo]) -> list[str]:
    path.write_bytes(path.read_bytes()[: members[3].offset_data + 100])
    return ["a", "b", "c"]


def cut_between(path: Path, members: list[tarfile.TarInfo]) -> list[str]:
    path.write_bytes(path.read_bytes()[: members[3].offset])
    return ["a", "b", "c"]


DAMAGES = [bad_checksum, first_header, hole, hole_within_data, zeros_to_the_end, cut_inside, cut_between]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_can_be_read_of_a_damaged_tar_is_read(tmp_path: Path, damage) -> None:
    path = tmp_path / "t.tar"
    left = damage(path, shard(path))
    names, failed = read(path)
    assert names == [f"{name}.jpg" for name in left]
    assert [failure.id for failure in failed] == [str(path)] and failed[0].error.startswith("damaged tar file (")
    for name in NAMES:
        assert exists(f"{path}/{name}.jpg")  # lost or not: nobody knows
    shard(path, ["a"])
    assert is_gone(f"{path}/b.jpg") and not is_gone(f"{path}/a.jpg")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_a_tar_inside(tmp_path: Path, damage) -> None:
    inner = tmp_path / "inner.tar"
    left = damage(inner, shard(inner))
    outer = tar(tmp_path / "outer.tar", {"0.jpg": jpeg(), "inner.tar": inner.read_bytes(), "z.jpg": jpeg()})
    names, failed = read(outer)
    assert names == ["0.jpg", *(f"inner.tar/{name}.jpg" for name in left), "z.jpg"]
    assert [failure.id for failure in failed] == [f"{outer}/inner.tar"]
    assert exists(f"{outer}/inner.tar/none.jpg")


def test_a_cut_tar_with_a_cut_one_inside(tmp_path: Path) -> None:
    inner = tmp_path / "inner.tar"
    members = shard(inner)
    outer = tar(tmp_path / "outer.tar", {"0.jpg": jpeg(), "inner.tar": inner.read_bytes()})
    with tarfile.open(outer) as file:
        start = file.getmember("inner.tar").offset_data
    outer.write_bytes(outer.read_bytes()[: start + members[2].offset_data + 10])
    names, failed = read(outer)
    assert names == ["0.jpg", "inner.tar/a.jpg", "inner.tar/b.jpg"]
    assert [failure.id for failure in failed] == [f"{outer}/inner.tar", str(outer)]


@pytest.mark.parametrize("padding", [512, 1024, 10240])
def test_whole_tars_end_in_different_ways(tmp_path: Path, padding: int) -> None:
    path = tmp_path / "t.tar"
    last = shard(path)[-1]
    end = last.offset_data + (last.size + 511) // 512 * 512
    path.write_bytes(path.read_bytes()[:end].ljust(end + padding, b"\0"))
    assert read(path) == ([f"{name}.jpg" for name in NAMES], [])


def test_records_for_tapes_and_labels(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    path = packed(tmp_path, "--blocking-factor=512", "--label=b.jpg", "a.jpg")
    assert path.stat().st_size == 512 * 512 and read(path) == (["a.jpg"], [])


def test_tars_one_behind_the_other_are_whole(tmp_path: Path) -> None:
    shard(tmp_path / "1.tar", ["a", "b"])
    shard(tmp_path / "2.tar", ["c"])
    path = tmp_path / "t.tar"
    path.write_bytes((tmp_path / "1.tar").read_bytes() + (tmp_path / "2.tar").read_bytes())
    assert read(path) == (["a.jpg", "b.jpg", "c.jpg"], [])


def test_a_nightly_job_over_a_damaged_tar(vlmkit, tmp_path: Path) -> None:
    """It ends with 3 each time, names the tar, and keeps its records until the tar is whole again."""
    path = tmp_path / "in/t.tar"
    members = shard(path)
    picture(tmp_path / "in/p.png")
    vlmkit("index", "-i", "./i", stdin=vlmkit("embed", "in").stdout)
    hole(path, members)
    for _ in range(2):
        done = vlmkit("embed", "--changed", "./i", "in", "--errors", "bad.jsonl", code=3)
        assert done.stdout == b"" and b"in/t.tar: damaged tar file (" in done.stderr
        assert [row["id"] for row in records((tmp_path / "bad.jsonl").read_bytes())] == [str(path)]
        assert b"t.tar could not be read whole: 2 of" in vlmkit("index", "-i", "./i", "--prune", "in", code=3).stderr
    assert b"its tar cannot be read whole" in vlmkit("embed", path / "b.jpg", code=2).stderr
    shard(path, NAMES[:3])
    vlmkit("index", "-i", "./i", "--prune", "in")
    left = records(vlmkit("index", "-i", "./i", "--dump").stdout)
    assert [Path(row["id"]).name for row in left] == ["p.png", "a.jpg", "b.jpg", "c.jpg"]


def test_a_copy_in_another_tar_has_no_captions_of_the_first(vlmkit, tmp_path: Path) -> None:
    tar(tmp_path / "1.tar", {"a.jpg": jpeg(), "a.txt": b"a"})
    vlmkit("index", "-i", "./i", stdin=vlmkit("embed", "1.tar").stdout)
    tar(tmp_path / "2.tar", {"b.jpg": jpeg()})
    (copy,) = records(vlmkit("embed", "--changed", "./i", "2.tar").stdout)
    assert copy["id"] == f"{tmp_path}/2.tar/b.jpg" and copy["width"] and "captions" not in copy
    (tmp_path / "1.tar").unlink()
    (moved,) = records(vlmkit("embed", "--changed", "./i", "2.tar").stdout)
    assert moved["captions"] == ["a"]


def test_each_tar_is_listed_once(tmp_path: Path) -> None:
    """However many there are, and in whatever order their members are opened."""
    paths = [tmp_path / f"{number}.tar" for number in range(40)]
    for path in paths:
        shard(path)
    LISTINGS._held.clear()
    for name in NAMES:
        for path in paths:
            assert open_source(f"{path}/{name}.jpg").size
    assert len(LISTINGS._held) == 40


def packed(folder: Path, *arguments: str) -> Path:
    subprocess.run(["tar", "-C", folder, "-cf", folder / "t.tar", *arguments], check=True)
    return folder / "t.tar"


def test_links_are_the_files_that_they_lead_to(tmp_path: Path) -> None:
    for name in ("store/.1.jpg", "x/b.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(jpeg("green"))
    (tmp_path / "a.jpg").hardlink_to(tmp_path / "store/.1.jpg")
    (tmp_path / "x/near.jpg").symlink_to("b.jpg")
    (tmp_path / "x/up.jpg").symlink_to("../all/.1.jpg")  # by way of a link to a folder
    (tmp_path / "x/chain.jpg").symlink_to("up.jpg")
    (tmp_path / "all").symlink_to("store")
    path = packed(tmp_path, "store", "a.jpg", "x/near.jpg", "x/b.jpg", "x/up.jpg", "x/chain.jpg", "all")
    assert read(path) == (["a.jpg", "x/near.jpg", "x/b.jpg", "x/up.jpg", "x/chain.jpg"], [])
    assert not is_gone(f"{path}/a.jpg") and not is_gone(f"{path}/x/chain.jpg")


def test_links_that_lead_nowhere_fail_alone(vlmkit, tmp_path: Path) -> None:
    """Nothing outside of the tar is opened."""
    picture(tmp_path / "outside.png")
    (tmp_path / "a.jpg").write_bytes(jpeg())
    links = {"b.jpg": str(tmp_path / "outside.png"), "c.jpg": "../outside.png", "d.jpg": "e.jpg", "e.jpg": "d.jpg"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    packed(tmp_path, "a.jpg", *links)
    done = vlmkit("embed", "t.tar", code=3)
    assert [Path(row["id"]).name for row in records(done.stdout)] == ["a.jpg"]
    assert done.stderr.count(b"which the tar file does not hold") == 4


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_members_stored_without_their_zeros(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.bmp"
    with path.open("wb") as file:
        file.write(b"BM" + b"1" * 5000)
        file.seek(100_000)
        file.write(b"2" * 5000)
        file.truncate(300_000)
    data = path.read_bytes()
    shard_path = packed(tmp_path, "--sparse", f"--format={form}", "a.bmp", "a.bmp")
    if shard_path.stat().st_size > 200_000:
        pytest.skip("this file system has no holes")
    (item,) = read_inputs([str(shard_path)])
    assert isinstance(item, Item) and isinstance(item.locate(), Sparse) and item.locate().read() == data
    assert open_source(f"{shard_path}/a.bmp").read() == data


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path: Path, form: int) -> None:
    names = ["/".join(["folder-ä" * 5] * 8) + f"/picture {number}" for number in range(3)]
    path = tmp_path / "t.tar"
    members = shard(path, names, form)
    assert read(path) == ([f"{name}.jpg" for name in names], [])
    overwrite(path, members[1].offset_data - 512, b"?" * 512)  # the header behind those of the long name
    found, failed = read(path)
    assert (found, len(failed)) == ([f"{names[0]}.jpg", f"{names[2]}.jpg"], 1)


def test_sizes_in_base_256(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    member = shard(path)[1]
    header = bytearray(path.read_bytes()[member.offset : member.offset_data])
    header[124:136] = b"\x80" + member.size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    overwrite(path, member.offset, bytes(header))
    assert read(path) == ([f"{name}.jpg" for name in NAMES], [])
    header[124:136] = b"\xff" * 11 + b"\0"  # -256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    overwrite(path, member.offset, bytes(header))
    names, failed = read(path)
    assert names == ["a.jpg", "c.jpg", "d.jpg", "e.jpg"] and len(failed) == 1


def test_of_two_members_of_one_name_the_last_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.tar"
    shard(path, ["a", "b", "a"])
    assert read(path) == (["a.jpg", "b.jpg"], [])
    (first, _) = read_inputs([str(path)])
    assert isinstance(first, Item) and first.locate().size == len(jpeg("blue", (42, 30)))
    assert f"{path}/a.jpg: comes twice" in capsys.readouterr().err


def samples(path: Path) -> dict[str, Record]:
    """What the records of a tar hold beside id and image, by the name of the picture."""
    records = [item.record for item in read_inputs([str(path)]) if isinstance(item, Item)]
    return {row["image"].removeprefix(f"{path}/"): dict(list(row.items())[2:]) for row in records}


def test_members_of_a_sample_stand_anywhere(tmp_path: Path) -> None:
    members = {"x/2.txt": b"two", "x/1.json": b'{"n":1}', "x/1.jpg": b"1", "y/1.txt": b"other", "x/2.jpg": b"2"}
    path = tar(tmp_path / "t.tar", {**members, "x/1.txt": b"one"})
    assert samples(path) == {"x/1.jpg": {"n": 1, "captions": ["one"]}, "x/2.jpg": {"captions": ["two"]}}


def test_points_in_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The longest name in common decides; what it does not decide is left out and told."""
    texts = ["v1.2 front.txt", "v1.2 back.txt", "v1.3.txt", "pair.txt", "one.left.txt", "one.more.txt", "solo.a.txt"]
    pictures = [
        "v1.2 front.jpg",
        "v1.2 back.jpg",
        "pair.left.jpg",
        "pair.right.jpg",
        "one.left.jpg",
        "one.jpg",
        "solo.jpg",
    ]
    path = tar(tmp_path / "t.tar", {name: name.encode() for name in [*texts, *pictures]})
    assert {name: fields.get("captions") for name, fields in samples(path).items()} == {
        "v1.2 front.jpg": ["v1.2 front.txt"],
        "v1.2 back.jpg": ["v1.2 back.txt"],
        "pair.left.jpg": ["pair.txt"],
        "pair.right.jpg": ["pair.txt"],
        "one.left.jpg": ["one.left.txt"],
        "one.jpg": ["one.more.txt"],
        "solo.jpg": ["solo.a.txt"],
    }
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}/v1.3.txt: of which picture it is cannot be told" in line


def test_ids_of_a_data_set_are_no_ids_of_records(vlmkit, tmp_path: Path) -> None:
    for name in ("1", "2"):
        fields = [{"id": 7, "sample_id": "s"}, {"id": "seven", "image": "raw/7.png"}]
        members = [(f"{i}.jpg", jpeg()) for i in (0, 1)] + [
            (f"{i}.json", json.dumps(fields[i]).encode()) for i in (0, 1)
        ]
        tar(tmp_path / f"{name}.tar", dict(members))
    found = records(vlmkit("embed", "1.tar", "2.tar").stdout)
    assert [row["id"] for row in found] == [f"{tmp_path}/{name}.tar/{i}.jpg" for name in "12" for i in (0, 1)]
    assert all(row["id"] == row["image"] for row in found)
    assert (found[0]["sample_id"], found[0]["sample_id_"]) == ("s", 7)
    assert (found[1]["sample_id"], found[1]["sample_image"]) == ("seven", "raw/7.png")


IMPERFECT = {
    "mark.json": (b'\xef\xbb\xbf{"a":"\xc3\xa4"}', {"a": "ä"}, ""),
    "wide.json": ('{"a":1}'.encode("utf-16"), {"a": 1}, ""),
    "nan.json": (b'{"a":NaN,"b":[-Infinity,2]}', {"a": None, "b": [None, 2]}, "NaN or Infinity"),
    "empty.json": (b"\n", {}, "empty"),
    "list.json": (b"[1]", {}, "not a JSON object"),
    "half.json": (b'{"a":', {}, "not JSON"),
    "deep.json": (b'{"a":NaN,"b":' + b"[" * 9000 + b"]" * 9000 + b"}", {}, "left out"),
    "wide.txt": ("früh".encode("utf-16"), {"captions": ["früh"]}, ""),
    "latin.txt": (b"caf\xe9 noir", {}, "not UTF-8"),
    "bytes.txt": (b"\1\2\0\3\4", {}, "left out"),
    "none.txt": (b"", {}, ""),
    "big.CAPTION": (b" big \n", {"captions": ["big"]}, ""),
    "short.cap": (b"short", {"captions": ["short"]}, ""),
}


@pytest.mark.parametrize("name", IMPERFECT)
def test_an_imperfect_side_car_does_not_cost_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    data, fields, warning = IMPERFECT[name]
    stem = name.partition(".")[0]
    path = tar(tmp_path / "t.tar", {name: data, f"{stem}.jpg": b""})
    assert samples(path) == {f"{stem}.jpg": fields}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == bool(warning) and all(f"{path}/{name}: " in line and warning in line for line in said)


def test_many_imperfect_side_cars_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = {f"{number}.{suffix}": b"\xe9" for number in range(50) for suffix in ("jpg", "txt")}
    assert len(samples(tar(tmp_path / "t.tar", members))) == 50
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 11 and "40 more members like that" in said[-1]


def test_captions_of_json_and_text(tmp_path: Path) -> None:
    members = {"a.txt": b"text", "a.jpg": b"", "a.json": b'{"captions":["one","text"]}', "a.2.txt": b"more"}
    assert samples(tar(tmp_path / "t.tar", members)) == {"a.jpg": {"captions": ["one", "text", "more"]}}


def test_side_cars_of_unchanged_members_are_not_told_again(vlmkit, tmp_path: Path) -> None:
    members = {"a.jpg": jpeg(), "a.json": b"{", "b.jpg": jpeg("blue"), "b.json": b'{"n": 1}'}
    tar(tmp_path / "a.tar", members)
    first = vlmkit("embed", "--changed", "./ix", "a.tar")
    assert b"a.tar/a.json: not JSON" in first.stderr
    assert [row.get("n") for row in records(first.stdout)] == [None, 1]
    vlmkit("index", "-i", "./ix", stdin=first.stdout)
    again = vlmkit("embed", "--changed", "./ix", "a.tar")
    assert again.stdout == again.stderr == b""
