"""embed over a folder of hostile pictures: good ones get the right vector, bad ones are named, and that is all."""

import base64
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
from helpers import jsonl, picture, records, vector
from PIL import Image

pytestmark = pytest.mark.slow

ENOUGH = 0.97  # cosine: JPEG and quantised colours move a vector a little, a wrong turn or a wrong mode far more


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, photos: Path):
    """The cases, what `vlmkit embed` said of each, and the vectors of what they should look like."""
    import pillow_heif

    pillow_heif.register_heif_opener()  # to write the HEIC files
    folder = tmp_path_factory.mktemp("corpus")
    with Image.open(photos / "china.jpg") as photo:
        cases = hostile.build(folder / "in", photo)
    (folder / "like").mkdir()
    for number, case in enumerate(cases):
        if case.like is not None:
            case.like.convert("RGB").save(folder / "like" / f"{number:03}.png", compress_level=1)
    command = [Path(sys.executable).with_name("vlmkit"), "embed"]
    done = subprocess.run(
        [*command, "in", "--errors", "errors.jsonl"], cwd=folder, capture_output=True, timeout=300, check=False
    )
    like = subprocess.run([*command, "like"], cwd=folder, capture_output=True, timeout=300, check=True)
    rows = {Path(row["image"]).relative_to(folder / "in").as_posix(): row for row in records(done.stdout)}
    errors = {row["image"].split("/in/")[1]: row for row in records((folder / "errors.jsonl").read_bytes())}
    expected = {int(Path(row["image"]).stem): vector(row) for row in records(like.stdout)}
    return cases, done, rows, errors, expected


def test_the_corpus_is_large_and_each_file_has_one_verdict(corpus) -> None:
    cases, done, rows, errors, _ = corpus
    assert done.returncode == 3
    assert len(cases) >= 60 and len({case.name for case in cases}) == len(cases)
    assert not rows.keys() & errors.keys()
    assert rows.keys() | errors.keys() == {case.name for case in cases}


def test_good_ones_have_the_vector_of_what_they_show(corpus) -> None:
    cases, _, rows, errors, expected = corpus
    wrong = {}
    for number, case in enumerate(cases):
        if case.like is not None:
            cosine = vector(rows[case.name]) @ expected[number] if case.name in rows else errors[case.name]["error"]
            if case.name not in rows or cosine < ENOUGH:
                wrong[case.name] = cosine
    assert wrong == {}


def test_bad_ones_are_named_with_a_reason(corpus) -> None:
    cases, _, rows, errors, _ = corpus
    bad = [case for case in cases if case.like is None]
    assert len(bad) >= 40
    assert [case.name for case in bad if case.name in rows] == []
    wrong = {case.name: errors[case.name]["error"] for case in bad if case.error not in errors[case.name]["error"]}
    assert wrong == {}
    assert all(errors[case.name]["error"] for case in bad)


def test_standard_error_has_one_line_for_each_bad_one(corpus) -> None:
    """Nothing from Pillow, and nothing that libtiff prints by itself."""
    _, done, _, errors, _ = corpus
    lines = done.stderr.decode().splitlines()
    assert len(lines) == len(errors) and all(line.startswith("vlmkit: ") for line in lines)


def test_size_is_that_of_the_upright_picture(corpus) -> None:
    _, _, rows, _, _ = corpus
    turned = {(row["width"], row["height"]) for name, row in rows.items() if name.startswith("turned")}
    assert turned == {(320, 240)}
    assert (rows["huge.png"]["width"], rows["huge.png"]["height"]) == (10_000, 6_000)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "HEIF", "JPEG2000", "BMP", "PPM", "TIFF"])
def test_a_file_cut_anywhere_is_bad_or_the_same(form: str, photos: Path) -> None:
    """At 25 places: never a picture with other pixels. (What a cut takes may be padding that nobody needs.)"""
    import pillow_heif

    from vlmkit.io.images import PictureError, open_picture

    class Bytes:
        mtime = 0.0

        def __init__(self, data: bytes) -> None:
            self.data, self.size = data, len(data)

        def read(self) -> bytes:
            return self.data

    pillow_heif.register_heif_opener()
    with Image.open(photos / "china.jpg") as photo:
        data = hostile.encoded(photo.convert("RGB").resize((160, 120)), form)
    whole = np.asarray(open_picture(Bytes(data))[0])
    opened = 0
    for cut in {1, 2, 3, 5, 9, 30, *(len(data) * i // 20 for i in range(1, 20))}:
        try:
            image, _, _ = open_picture(Bytes(data[:-cut]))
        except PictureError:
            continue
        opened += 1
        assert np.array_equal(np.asarray(image), whole), cut
    assert opened <= 4


def test_heic_without_its_package_says_how_to_get_it(vlmkit, environment, tmp_path: Path, photos: Path) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    with Image.open(photos / "china.jpg") as photo:
        photo.convert("RGB").save(tmp_path / "a.heic", "HEIF")
    code = "import sys; sys.modules['pillow_heif'] = None; from vlmkit.__main__ import run; run()"
    words = [sys.executable, "-c", code, "embed", tmp_path / "a.heic"]
    done = subprocess.run(words, capture_output=True, env=environment)
    assert b"pip install 'vlmkit[heic]'" in done.stderr and len(done.stderr.splitlines()) == 1
    assert done.returncode == 2
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/pillow_heif.py").write_text("raise ImportError('libheif.so.1 is missing')\n")
    environment["PYTHONPATH"] = str(tmp_path / "broken")
    assert b"cannot be imported (libheif.so.1 is missing)" in vlmkit("embed", "a.heic", code=2).stderr


@pytest.mark.parametrize("size", [(3000, 2), (2, 3001), (999, 30), (64, 48)])
def test_the_middle_of_a_long_picture_is_all_that_is_cropped_to(size: tuple[int, int]) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    from vlmkit.io.images import middle

    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    picture = Image.fromarray(noise)
    clip = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224)])
    difference = np.abs(np.asarray(clip(picture), int) - np.asarray(clip(middle(picture)), int))
    assert difference.mean() < 2  # of 255, on noise: the scaled length is rounded to whole pixels
    assert max(middle(Image.new("L", (65_000, 1))).size) <= 17


def test_a_group_of_copies_stands_for_its_pictures(vlmkit, tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png", "red")
    vlmkit("index", stdin=vlmkit("embed", "a.png", "b.png").stdout)
    groups = vlmkit("search", "--duplicates").stdout
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    for how in (("embed",), ("classify", "--labels", "red,blue"), ("caption", "--max-tokens", "5")):
        rows = records(vlmkit(*how, stdin=groups).stdout)
        assert [(row["id"], row["image"], row["kept"]) for row in rows] == [(path, path, paths[0]) for path in paths]
    (row,) = records(vlmkit("ask", "same?", "--max-tokens", "5", stdin=groups).stdout)
    assert row["id"] == " ".join(paths) and row["images"] == paths
    one = jsonl({"id": "1", "images": ["a.png"]})
    assert records(vlmkit("embed", stdin=one).stdout)[0]["image"] == paths[0]
    for field in ("image", "images"):
        several = jsonl({"id": "1", field: paths})
        assert b"several pictures where one is required" in vlmkit("embed", stdin=several, code=2).stderr


@pytest.mark.parametrize(
    "form",
    [
        lambda path, data: f"data:image/png;base64,{data}",
        lambda path, data: data,
        lambda path, data: {"bytes": data, "path": "gone.png"},
        lambda path, data: {"bytes": None, "path": str(path)},
        lambda path, data: [path.name],
        lambda path, data: path.as_uri(),
    ],
    ids=["data", "base64", "bytes", "path", "list", "file"],
)
def test_a_record_may_hold_its_picture(vlmkit, tmp_path: Path, form) -> None:
    image = picture(tmp_path / "a b.png", "teal")
    (expected,) = records(vlmkit("embed", image).stdout)
    row = {"image": form(image, base64.b64encode(image.read_bytes()).decode()), "question": "red?", "answer": "no"}
    (tmp_path / "rows.jsonl").write_bytes(jsonl(row))
    embedded = vlmkit("embed", "rows.jsonl").stdout
    (found,) = records(embedded)
    assert found["embedding"] == expected["embedding"] and len(found["id"]) < 200 and isinstance(found["image"], str)
    assert records(vlmkit("classify", "--labels", "red,teal", stdin=embedded).stdout)[0]["labels"]
    assert records(vlmkit("ask", "--max-tokens", 3, stdin=embedded).stdout)[0]["answer"]
    dry = vlmkit("train", "instruct", "rows.jsonl", "-o", "m", "--preset", "debug", "--dry-run")
    assert b"1 kept" in dry.stderr
    vlmkit("index", stdin=embedded)
    assert records(vlmkit("search", "--image", image).stdout)[0]["id"] == found["id"]


def test_what_a_record_holds_may_be_no_picture(vlmkit) -> None:
    long = base64.b64encode(b"\x89PNG" + bytes(5000)).decode()
    done = vlmkit("embed", stdin=jsonl({"id": "x", "image": long}, {"image": "data:image/png;base64,?"}), code=3)
    assert [len(line) < 200 for line in done.stderr.splitlines()] == [True, True] and b"x: " in done.stderr


def test_pictures_in_a_parquet_file(vlmkit, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow.parquet import write_table

    data = picture(tmp_path / "a.png", "teal").read_bytes()
    columns = {"image": [{"bytes": data, "path": None}], "jpg": [data], "list": [[{"bytes": data}]]}
    for name, column in columns.items():
        field = "images" if name == "list" else "image"
        write_table(pyarrow.table({field: column, "raw": [b"\0\1"]}), tmp_path / f"{name}.parquet")
        done = vlmkit("embed", f"{name}.parquet")
        (row,) = records(done.stdout)
        assert row["width"] and "raw" not in row and b"raw: bytes that are no picture" in done.stderr


@pytest.mark.parametrize("key", ["image_path", "img", "file_name", "filename", "path", "image_file", "image_url"])
def test_pictures_under_the_keys_of_other_tools(vlmkit, tmp_path: Path, key: str) -> None:
    picture(tmp_path / "a.png")
    (row,) = records(vlmkit("embed", stdin=jsonl({key: "a.png", "n": 1})).stdout)
    path = str(tmp_path / "a.png")
    assert (row["id"], row["image"], row[key], row["n"]) == (path, path, "a.png", 1)
    both = jsonl({"id": "1", key: "a.png", "img_path": "b.png"})
    assert b"names a picture, but is not read" in vlmkit("embed", stdin=both, code=2).stderr
    text = jsonl({"id": "1", "path": "notes/a.txt", "text": "a dog"})
    assert "image" not in records(vlmkit("embed", stdin=text).stdout)[0]
