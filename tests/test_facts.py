"""What the camera wrote into a picture: time, camera and place in records, and searches by them."""

import io
import random
import struct
from pathlib import Path

import pytest
from helpers import embedded, jsonl, records, tar
from PIL import Image, PngImagePlugin

from vlmkit.api import Index
from vlmkit.errors import VlmkitError
from vlmkit.io.exif import camera_name, exif_facts, iso_time
from vlmkit.io.images import open_with_facts
from vlmkit.io.sources import Memory

FACTS = {"taken": "2024-06-30T12:34:56", "camera": "Canon EOS R5", "lat": -33.8567222, "lon": 151.2152778}
HEIF = "HEIF"


def exif(**changes: object) -> Image.Exif:
    """That of FACTS, with `changes` of its values."""
    values = {
        "make": "Canon",
        "model": "Canon EOS R5",
        "original": "2024:06:30 12:34:56",
        "digitized": "2025:01:01 00:00:00",
        "south": "S",
        "lat": (33.0, 51.0, 24.2),
        "east": "E",
        "lon": (151.0, 12.0, 55.0),
    } | changes
    made = Image.Exif()
    made[0x0112] = 6
    for tag, name in ((0x010F, "make"), (0x0110, "model")):
        if values[name] is not None:
            made[tag] = values[name]
    within, gps = made.get_ifd(0x8769), made.get_ifd(0x8825)
    for ifd, tag, name in (
        (within, 0x9003, "original"),
        (within, 0x9004, "digitized"),
        (gps, 1, "south"),
        (gps, 2, "lat"),
        (gps, 3, "east"),
        (gps, 4, "lon"),
    ):
        if values[name] is not None:
            ifd[tag] = values[name]
    return made


def saved(form: str, data: Image.Exif | bytes, **options: object) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(out, form, exif=data, **options)
    return out.getvalue()


def facts_of(data: bytes) -> dict:
    return open_with_facts(Memory(data), 224)[1]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", HEIF])
def test_all_formats_tell(form: str) -> None:
    if form == HEIF:
        pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif").register_heif_opener()
    found = facts_of(saved(form, exif().tobytes()))
    assert {name: found[name] for name in FACTS} == FACTS


def test_png_with_exif_as_text() -> None:
    text = PngImagePlugin.PngInfo()
    data = exif().tobytes()
    text.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    out = io.BytesIO()
    Image.new("RGB", (40, 30)).save(out, "PNG", pnginfo=text)
    assert facts_of(out.getvalue()) == FACTS | {"width": 30, "height": 40}


def test_the_other_byte_order() -> None:
    entries = [(0x010F, 2, 5, 44), (0x0110, 2, 3, int.from_bytes(b"R5\0\0"))]
    data = b"MM\0*" + struct.pack(">IH", 8, 2) + b"".join(struct.pack(">HHII", *entry) for entry in entries)
    assert exif_facts(data.ljust(44, b"\0") + b"Sony\0") == {"camera": "Sony R5"}


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"original": None, "digitized": None}, {"taken"}),
        ({"original": "0000:00:00 00:00:00", "digitized": "    :  :     :  :  "}, {"taken"}),
        ({"original": "2024:13:01 00:00:00", "digitized": "2024:02:30 00:00:00"}, {"taken"}),
        ({"make": None, "model": None}, {"camera"}),
        ({"make": " \0", "model": "\0\0"}, {"camera"}),
        ({"south": None}, {"lat", "lon"}),
        ({"lat": None}, {"lat", "lon"}),
        ({"lat": (91.0, 0.0, 0.0)}, {"lat", "lon"}),
        ({"lat": (0.0, 0.0, 0.0), "lon": (0.0, 0.0, 0.0)}, {"lat", "lon"}),
    ],
)
def test_what_is_unknown_is_left_out(changes: dict, missing: set[str]) -> None:
    assert facts_of(saved("JPEG", exif(**changes))).keys() == {*FACTS, "width", "height"} - missing


def test_names_and_times() -> None:
    assert camera_name("NIKON CORPORATION", "NIKON D850") == "NIKON D850"
    assert camera_name("SONY", "ILCE-7M3") == "SONY ILCE-7M3"
    assert camera_name(b"Apple\0junk", "iPhone  15\n") == "Apple iPhone 15"
    assert camera_name("Canon", None) == "Canon" and camera_name(None, "X100") == "X100"
    assert iso_time(b"2024:06:30 12:34:56\0") == "2024-06-30T12:34:56" == iso_time("2024-06-30 12:34:56.789")
    assert iso_time("2024:06:30 12:34") == "2024-06-30T12:34:00" and iso_time("June") is None is iso_time(None)


def test_corrupt_exif_fails_no_picture(vlmkit, tmp_path: Path) -> None:
    """Cut at each byte, and scrambled: the picture opens, what is told is told right or not at all."""
    whole = exif().tobytes()
    chance = random.Random(0)
    for cut in range(0, len(whole), 3):
        assert exif_facts(whole[:cut]).items() <= FACTS.items() | {("taken", "2025-01-01T00:00:00")} or cut > 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 20)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        assert exif_facts(bytes(data)).keys() <= FACTS.keys()
    (tmp_path / "a.jpg").write_bytes(saved("JPEG", whole[: len(whole) // 2]))
    (tmp_path / "b.jpg").write_bytes(saved("JPEG", b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    done = vlmkit("embed", "a.jpg", "b.jpg")
    assert [row.get("camera") for row in records(done.stdout)] == ["Canon EOS R5", None] and not done.stderr


def test_records_of_files_tars_and_urls(vlmkit, tmp_path: Path) -> None:
    data = saved("JPEG", exif())
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "plain.jpg").write_bytes(saved("JPEG", b""))
    tar(tmp_path / "s.tar", {"b.jpg": data, "b.json": b'{"category": "c", "camera": "unknown"}'})
    rows = records(vlmkit("embed", "a.jpg", "s.tar", "plain.jpg").stdout)
    assert [{name: row[name] for name in FACTS} for row in rows[:2]] == [FACTS, FACTS]
    assert not FACTS.keys() & rows[2].keys() and rows[1]["category"] == "c"
    vlmkit("index", "-i", "./i", stdin=jsonl(*rows))

    def found(*conditions: str, code: int = 0) -> set[str]:
        words = [word for condition in conditions for word in ("--where", condition)]
        hits = records(vlmkit("search", "-i", "./i", "noise", *words, code=code).stdout)
        return {Path(hit["image"]).name for hit in hits}

    assert found("taken>=2024-06", "taken<2024-07-01", "camera~*EOS*", "lat<-30") == {"a.jpg", "b.jpg"}
    assert found("taken<2024", code=1) == set()


PLACES = {
    "vienna": (48.2082, 16.3738),
    "graz": (47.0707, 15.4395),
    "fiji west": (-17.0, 179.9),
    "fiji east": (-17.0, -179.9),
    "pole": (89.9, 0.0),
    "beyond the pole": (89.9, 180.0),
    "sydney": (-33.8688, 151.2093),
}


@pytest.fixture
def travelled(vlmkit, tmp_path: Path):
    rows = [
        embedded(name, [1, number / 10], place={"lat": -80.5}, lat=lat, lon=lon)
        for number, (name, (lat, lon)) in enumerate(PLACES.items())
    ]
    rows += [embedded("at home", [1, 1]), embedded("nonsense", [1, 1], lat="48.2", lon=True)]
    rows += [embedded("nested", [1, 1], place={"lat": 48.2, "lon": 16.37})]
    vlmkit("index", "-i", "./i", stdin=jsonl(*rows))

    def search(*words: str, code: int = 0) -> dict[str, float]:
        done = vlmkit("search", "-i", "./i", *words, code=code)
        return {row["id"]: row.get("distance") for row in records(done.stdout)}

    return search


def test_the_nearest_come_first(travelled) -> None:
    """Distances are those of a geodesic calculator, within the 0.5 % by which the earth is no sphere."""
    found = travelled("--near", "48.2082,16.3738,20000")
    assert list(found)[:2] == ["vienna", "graz"] and len(found) == 7 and found["vienna"] == 0
    assert found["graz"] == pytest.approx(145.2, rel=0.005) and found["sydney"] == pytest.approx(15_982, rel=0.005)
    assert list(travelled("--near", "48.2082,16.3738,20000", "-k", "1")) == ["vienna"]
    assert list(travelled("--near", "-17,180,12")) == ["fiji east", "fiji west"]  # across the date line, alike by id
    assert list(travelled("--near", "89.9,90,20")) == ["beyond the pole", "pole"]
    assert list(travelled("--near", "-33.9,151.2,5.0", "--where", "lon>100")) == ["sydney"]
    assert travelled("--near", "48.2,16.3,200", "--like", "graz") == {"vienna": pytest.approx(5.5, abs=0.1)}


@pytest.mark.parametrize(
    "place", ["1,2", "1,2,3,4", "north,2,3", "91,0,1", "0,181,1", "0,0,0", "0,0,-1", "nan,0,1", "0,0,inf", ""]
)
def test_what_is_no_place(vlmkit, place: str) -> None:
    line = vlmkit("search", "--near", place, code=2).stderr.decode()
    assert (
        line.startswith(f"vlmkit: --near {place}: not a place and a distance: write a latitude")
        and "\n" not in line[:-1]
    )


def test_nothing_near_is_told(vlmkit, travelled) -> None:
    line = vlmkit("search", "-i", "./i", "--near", "0,0,100", code=1).stderr.decode()
    assert (
        "the nearest of 7 records that say where they were taken (3 do not) is 5,444.7 km" in line
        and line.count("\n") == 1
    )
    vlmkit("index", "-i", "./j", stdin=jsonl(embedded("a", [1, 0])))
    line = vlmkit("search", "-i", "./j", "--near", "0,0,100", code=1).stderr.decode()
    assert "no record in the index says where it was taken (lat, lon): leave --near out" in line
    line = vlmkit("search", "-i", "./i", "--near", "48.2,16.3,200", "--where", "lat<0", code=1).stderr.decode()
    assert "none of 10 records has lat<0 and --near 48.2,16.3,200" in line
    line = vlmkit("search", "-i", "./i", "--near", "48.2,16.3,200", "--min-score", "0.2", code=2).stderr.decode()
    assert "--near alone is none" in line


def test_near_in_several_indexes_and_from_python(vlmkit, travelled, tmp_path: Path) -> None:
    vlmkit("index", "-i", "./j", stdin=jsonl(embedded("linz", [1, 0], lat=48.3069, lon=14.2858)))
    found = records(vlmkit("search", "-i", "./i", "-i", "./j", "--near", "48.2,16.3,200").stdout)
    assert [row["id"] for row in found] == ["vienna", "graz", "linz"] and [row["rank"] for row in found] == [1, 2, 3]
    with Index(tmp_path / "i") as index:
        assert [row["id"] for row in index.search(near=(48.2, 16.3, 200))] == ["vienna", "graz"]
        distances = {row["id"]: row["distance"] for row in index.search(like="graz", near=(48.2, 16.3, 200))}
        assert distances.keys() == {"graz", "vienna"} and distances["vienna"] < 6
        with pytest.raises(VlmkitError, match="not a place"):
            index.search(near=(48.2, 16.3))


def test_near_in_qdrant(vlmkit, travelled) -> None:
    pytest.importorskip("qdrant_client", reason="qdrant needs qdrant-client")
    vlmkit("index", "-i", "./i", "--to", "qdrant:./q/all")
    found = records(vlmkit("search", "-i", "qdrant:./q/all", "--near", "48.2,16.3,200").stdout)
    assert [row["id"] for row in found] == ["vienna", "graz"]
    found = records(vlmkit("search", "-i", "qdrant:./q/all", "--near", "48.2,16.3,200", "--like", "graz").stdout)
    assert [row["id"] for row in found] == ["vienna"] and found[0]["distance"] < 6
