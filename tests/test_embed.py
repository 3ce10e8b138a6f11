"""embed through the installed command, on bytes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from helpers import jpeg, jsonl, picture, records, tar, vector
from PIL import Image


def test_record_of_a_picture(vlmkit, tmp_path: Path) -> None:
    path = picture(tmp_path / "a b é.png", size=(40, 30))
    (record,) = records(vlmkit("embed", path.name).stdout)
    facts = path.stat()
    assert record["id"] == record["image"] == str(path)
    assert (record["width"], record["height"]) == (40, 30)
    assert (record["mtime"], record["bytes"]) == (facts.st_mtime, facts.st_size)
    name, _, digits = record["model"].partition("@")
    assert name == "mini" and len(digits) == 12 and int(digits, 16)
    assert abs(np.linalg.norm(vector(record)) - 1) < 2e-3


def test_folder_is_sorted_recursive_and_skips_hidden(vlmkit, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("b.JPG", "a/z.png", "a.png", ".hidden.png", ".dir/x.png", "a/y.webp"):
        picture(folder / name)
    (folder / "note.txt").write_text("no picture")
    found = [r["image"] for r in records(vlmkit("embed", "in").stdout)]
    assert found == sorted(str(folder / n) for n in ("a.png", "a/y.webp", "a/z.png", "b.JPG"))


def test_loop_of_links_ends(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    assert len(records(vlmkit("embed", "in").stdout)) == 1


def test_link_is_not_resolved(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to("real.png")
    (record,) = records(vlmkit("embed", "link.png").stdout)
    assert record["image"] == str(tmp_path / "link.png")


def test_webdataset_shard(vlmkit, tmp_path: Path) -> None:
    sample = json.dumps({"id": "first", "captions": ["a red field"], "extra": 1}).encode()
    members = {"0001.jpg": jpeg(), "0001.json": sample, "0002.jpg": jpeg("blue"), "0002.txt": b"blue\n", "x.md": b"#"}
    shard = tar(tmp_path / "shard.tar", members)
    first, second = records(vlmkit("embed", "shard.tar").stdout)
    assert first["sample_id"] == "first" and first["captions"] == ["a red field"] and first["extra"] == 1
    assert first["id"] == first["image"] == f"{shard}/0001.jpg" and first["bytes"] == len(members["0001.jpg"])
    assert second["id"] == f"{shard}/0002.jpg" and second["captions"] == ["blue"]


def test_tar_member_by_path_gives_the_same_vector(vlmkit, tmp_path: Path) -> None:
    tar(tmp_path / "s.tar", {"d/a.jpg": jpeg("green"), "d/b.jpg": jpeg("blue")})
    by_tar = records(vlmkit("embed", "s.tar").stdout)
    by_path = records(vlmkit("embed", stdin=jsonl(*({"image": r["image"]} for r in by_tar))).stdout)
    assert [r["embedding"] for r in by_path] == [r["embedding"] for r in by_tar]


def test_tar_member_as_input(vlmkit, tmp_path: Path) -> None:
    shard = tar(tmp_path / "s.tar", {"a.jpg": jpeg("green")})
    (record,) = records(vlmkit("embed", "s.tar/a.jpg").stdout)
    assert record["image"] == f"{shard}/a.jpg"
    vlmkit("embed", "s.tar/none.jpg", code=2)


def test_records_keep_their_fields_and_order(vlmkit, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"in/{name}.png")
    rows = [{"id": n, "image": f"{n}.png", "mine": {"deep": [1, None, "é"]}} for n in ("c", "a", "b")]
    (tmp_path / "in/rows.jsonl").write_bytes(jsonl(*rows))
    found = records(vlmkit("embed", "in/rows.jsonl").stdout)
    assert [r["id"] for r in found] == ["c", "a", "b"]
    assert all(r["mine"] == {"deep": [1, None, "é"]} for r in found)
    assert found[0]["image"] == str(tmp_path / "in/c.png")
    piped = records(vlmkit("embed", "--images", "in", stdin=jsonl(*rows)).stdout)
    assert piped == found


def test_json_document_and_array(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "one.json").write_text(json.dumps({"image": "a.png"}, indent=2))
    (tmp_path / "two.json").write_text(json.dumps([{"image": "a.png"}, {"text": "hi"}], indent=2))
    assert len(records(vlmkit("embed", "one.json").stdout)) == 1
    assert [r["id"] for r in records(vlmkit("embed", "two.json").stdout)] == [str(tmp_path / "a.png"), "hi"]


def test_lists_on_standard_input(vlmkit, tmp_path: Path) -> None:
    for name in ("a.png", "with\nline.png"):
        picture(tmp_path / name)
    assert len(records(vlmkit("embed", stdin=b"a.png\r\n\n").stdout)) == 1
    found = records(vlmkit("embed", "-0", stdin=b"with\nline.png\0a.png\0").stdout)
    assert [Path(r["image"]).name for r in found] == ["with\nline.png", "a.png"]


def test_texts(vlmkit, tmp_path: Path) -> None:
    lines = "a red car\nan old café\n".encode()
    found = records(vlmkit("embed", "--text", stdin=lines).stdout)
    assert [r["id"] for r in found] == [r["text"] for r in found] == ["a red car", "an old café"]
    (tmp_path / "texts.txt").write_bytes(lines)
    assert records(vlmkit("embed", "--text", "texts.txt").stdout) == found
    assert records(vlmkit("embed", stdin=jsonl({"text": "a red car"})).stdout)[0]["embedding"] == found[0]["embedding"]


def test_a_bad_picture_among_good_ones(vlmkit, tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in/b.jpg").write_bytes(jpeg(size=(400, 300))[:-500])
    done = vlmkit("embed", "in", "--errors", "bad.jsonl", code=3)
    assert [Path(r["image"]).name for r in records(done.stdout)] == ["a.png", "c.png"]
    (bad,) = records((tmp_path / "bad.jsonl").read_bytes())
    assert bad["id"] == bad["image"] == str(tmp_path / "in/b.jpg") and "truncated" in bad["error"]
    assert len(done.stderr.splitlines()) == 1 and b"b.jpg" in done.stderr


@pytest.mark.parametrize("data", [b"", b"no picture", jpeg()[:200]])
def test_the_only_picture_is_bad(vlmkit, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "out").write_text("kept")
    done = vlmkit("embed", "a.jpg", "-o", "out", code=2)
    assert done.stdout == b"" and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "out").read_text() == "kept"


def test_fifo_is_not_opened(vlmkit, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    picture(tmp_path / "a.png")
    done = vlmkit("embed", "pipe.jpg", "a.png", code=3)
    assert b"not a regular file" in done.stderr


def test_name_that_is_not_utf8_fails_alone(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png")
    shutil.copy(tmp_path / "in/a.png", os.fsencode(tmp_path / "in") + b"/b\xff.png")
    done = vlmkit("embed", "in", "--errors", "bad.jsonl", code=3)
    assert len(records(done.stdout)) == 1
    assert "\\xff" in records((tmp_path / "bad.jsonl").read_bytes())[0]["id"]


def test_bad_lines_fail_alone(vlmkit) -> None:
    lines = b'{"text": "a"}\n{broken\n[1]\n{"text": 5}\n{"x": 1}\n{"text": NaN}\n\n{"text": "b"}\n'
    done = vlmkit("embed", code=3, stdin=lines)
    assert [r["text"] for r in records(done.stdout)] == ["a", "b"]
    assert len(done.stderr.splitlines()) == 5


def test_exif_orientation(vlmkit, tmp_path: Path) -> None:
    upright = Image.linear_gradient("L").convert("RGB").resize((64, 32))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    first, second = records(vlmkit("embed", "upright.png", "turned.png").stdout)
    assert (second["width"], second["height"]) == (64, 32)
    assert second["embedding"] == first["embedding"]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1", "F"])
def test_modes(vlmkit, tmp_path: Path, mode: str) -> None:
    """Every mode gives the vector of the same picture in RGB."""
    levels = Image.linear_gradient("L")
    image = Image.fromarray(np.asarray(levels).astype(np.uint16) * 257) if mode == "I;16" else levels.convert(mode)
    image.save(tmp_path / "a.tif")
    (levels.convert("1") if mode == "1" else levels).convert("RGB").save(tmp_path / "b.png")
    first, second = records(vlmkit("embed", "a.tif", "b.png").stdout)
    assert vector(first) @ vector(second) > 0.99


@pytest.mark.slow
def test_same_bytes_whatever_the_batch(vlmkit, photos: Path) -> None:
    runs = [vlmkit("embed", photos, "--batch-size", n, "--workers", w).stdout for n, w in ((1, 1), (5, 3), (64, 2))]
    assert runs[0] == runs[1] == runs[2]
    assert [r["image"] for r in records(runs[0])] == sorted(str(p) for p in photos.iterdir())


@pytest.mark.slow
def test_safetensors_file_and_pipe(vlmkit, tmp_path: Path, photos: Path) -> None:
    """The packed form opens with safetensors itself and gives the same records back, byte for byte."""
    rows = vlmkit("embed", photos).stdout
    vlmkit("embed", photos, "--format", "safetensors", "-o", "v.safetensors")
    data = (tmp_path / "v.safetensors").read_bytes()
    with safetensors.safe_open(tmp_path / "v.safetensors", "np") as file:
        metadata = file.metadata()
    tensors = safetensors.numpy.load(data)
    expected = records(rows)
    assert list(metadata) == ["vlmkit"]
    assert metadata["vlmkit"] == json.dumps(json.loads(metadata["vlmkit"]), sort_keys=True, separators=(",", ":"))
    assert json.loads(metadata["vlmkit"])["count"] == len(expected)
    assert tensors["embedding"].dtype == np.float16
    assert np.array_equal(tensors["embedding"].astype(np.float32), np.stack([vector(r) for r in expected]))
    fields = records(tensors["records"].tobytes())
    assert fields == [{k: v for k, v in r.items() if k != "embedding"} for r in expected]
    vlmkit("embed", photos, "--format", "safetensors", "-o", "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == data
    piped = vlmkit("embed", photos, "--format", "safetensors").stdout
    for blobs in (piped, piped + piped, data):
        vlmkit("index", "-i", "./packed", stdin=blobs)
        assert json.loads(vlmkit("index", "-i", "./packed", "--info").stdout)["count"] == len(expected)


def test_output_file_is_whole_or_absent(vlmkit, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    vlmkit("embed", "a.png", "-o", "out.jsonl")
    assert len(records((tmp_path / "out.jsonl").read_bytes())) == 1
    vlmkit("embed", "a.png", "-o", "missing/out.jsonl", code=2)
    vlmkit("embed", "a.png", "-m", "nothing", "-o", "out2.jsonl", code=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "home", "out.jsonl"]


def test_nothing_in_nothing_out(vlmkit, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert vlmkit("embed").stdout == b""
    assert vlmkit("embed", "empty").stdout == b""
    vlmkit("embed", "empty", "--format", "safetensors", "-o", "none.safetensors")
    assert vlmkit("embed", "none.safetensors").stdout == b""


@pytest.mark.slow
def test_large_jpeg_is_scaled_while_decoding(vlmkit, tmp_path: Path, photos: Path) -> None:
    """`draft` keeps the vector: the same picture as PNG is decoded in full."""
    with Image.open(photos / "china.jpg") as image:
        large = image.resize((4 * image.width, 4 * image.height), Image.Resampling.BICUBIC)
    large.save(tmp_path / "a.jpg", quality=95)
    large.save(tmp_path / "b.png")
    first, second = records(vlmkit("embed", "a.jpg", "b.png").stdout)
    assert (first["width"], first["height"]) == large.size
    assert vector(first) @ vector(second) > 0.995
