"""RAW, SVG and JPEG XL: what is decoded against the packages' own documented calls, and what is refused."""

import base64
import gzip
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import picture, records
from PIL import Image
from raws import dng

from vlmkit.io import images as opening
from vlmkit.io import kinds
from vlmkit.io.images import open_picture, open_with_facts
from vlmkit.io.sources import Memory, PictureError, is_picture, is_picture_name
from vlmkit.io.svg import SvgDecoder

rawpy = pytest.importorskip("rawpy", reason="RAW needs rawpy")
pytest.importorskip("resvg_py", reason="SVG needs resvg-py")

SVG = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
HALVES = f'<svg {SVG} width="100" height="50"><rect width="50" height="50" fill="#f00"/></svg>'


@pytest.fixture(scope="module")
def photo(photos: Path) -> Image.Image:
    return Image.open(photos / "coffee.png").convert("RGB").resize((360, 240))


def _names(output: bytes) -> list[str]:
    return [Path(row["image"]).name for row in records(output)]


def _opened(data: bytes, size: int | None = None) -> tuple[Image.Image, dict]:
    return open_with_facts(Memory(data), size)


def _like(image: Image.Image, other: Image.Image) -> float:
    """The correlation of two pictures."""
    left, right = (np.asarray(one.convert("L").resize((32, 32)), float).ravel() for one in (image, other))
    return float(np.corrcoef(left, right)[0, 1])


def test_a_raw_file_is_its_preview(photo: Image.Image) -> None:
    data = dng(photo, (180, 120))
    image, facts = _opened(data, 100)
    assert facts == {"taken": "2024-06-30T12:34:56", "camera": "NIKON D850", "width": 360, "height": 240}
    with rawpy.imread(io.BytesIO(data)) as raw:
        preview = Image.open(io.BytesIO(raw.extract_thumb().data))
        assert image.size == (180, 120) and np.array_equal(np.asarray(image), np.asarray(preview))
        developed = raw.postprocess(use_camera_wb=True)
    for size in (None, 300):  # the whole is wanted, and more than the preview has
        assert np.array_equal(np.asarray(_opened(data, size)[0]), developed)
    assert _like(image, photo) > 0.98 and _like(Image.fromarray(developed), photo) > 0.9


def test_without_a_preview_it_is_developed(photo: Image.Image) -> None:
    data = dng(photo)
    for size, half in ((120, True), (121, False)):
        with rawpy.imread(io.BytesIO(data)) as raw:
            developed = raw.postprocess(use_camera_wb=True, half_size=half)
        assert np.array_equal(np.asarray(_opened(data, size)[0]), developed)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("preview", [None, (180, 120)])
def test_it_stands_upright(photo: Image.Image, orientation: int, preview: tuple[int, int] | None) -> None:
    image, facts = _opened(dng(photo, preview, orientation), 100)
    upright = photo.transpose(Image.Transpose[opening.TURNS[orientation]])
    assert (facts["width"], facts["height"]) == upright.size and _like(image, upright) > 0.9


def test_damaged_raw_files_fail(photo: Image.Image) -> None:
    data = dng(photo, (180, 120))
    for cut in (len(data) - 100, len(data) // 2, 2000):
        with pytest.raises(PictureError, match="truncated"):
            _opened(data[:cut], 100)
    for header in (b"IIRO", b"FUJIFILMCCD-RAW ", b"\0\0\0\x18ftypcrx "):
        with pytest.raises(PictureError, match=r"LibRaw cannot read|truncated"):
            _opened(header + bytes(3000), 100)
    at = data.index(b"\xff\xd8")
    no_preview = data[: at + 20] + bytes(3000) + data[at + 3020 :]
    assert _opened(no_preview, 100)[0].size == (180, 120) and _like(_opened(no_preview, 100)[0], photo) > 0.9


def test_a_tiff_of_an_editor_is_no_raw_file(photo: Image.Image) -> None:
    out = io.BytesIO()
    photo.save(out, "TIFF", tiffinfo={271: "NIKON CORPORATION", 272: "NIKON D850"})
    image, facts = _opened(out.getvalue(), 100)
    assert image.size == photo.size and facts["camera"] == "NIKON D850"


def test_drawings_are_drawn_on_white() -> None:
    for data in (HALVES.encode(), gzip.compress(HALVES.encode()), b'<?xml version="1.0"?>\n' + HALVES.encode()):
        image, facts = _opened(data, 200)
        assert image.size == (800, 400) and facts == {"width": 100, "height": 50}
        assert image.getpixel((399, 0)) == (255, 0, 0) and image.getpixel((401, 0)) == (255, 255, 255)
        assert _opened(data)[0].size == (100, 50)


@pytest.mark.parametrize(
    ("attributes", "width", "height"),
    [
        ('viewBox="0 0 20 10"', 20, 10),
        ('width="2in"', 192, 96),
        ('width="100%" height="100%" viewBox="0 0 40 20"', 40, 20),
        ('height="1cm" viewBox="0,0,10,10"', 38, 38),
        ("", 300, 150),
        ('width="1e300" height="1e300"', 10**9, 10**9),
        ('width="1" height="1000000"', 1, 1_000_000),
    ],
)
def test_sizes_of_drawings(attributes: str, width: int, height: int) -> None:
    image, facts = _opened(f'<svg {SVG} {attributes}><rect width="5" height="5"/></svg>'.encode(), 100)
    assert facts == {"width": width, "height": height} and max(image.size) <= 4096


@pytest.mark.skipif(shutil.which("fc-match") is None, reason="fontconfig is not installed")
@pytest.mark.parametrize("font", ["", 'font-family="sans-serif"', 'font-family="No Such Font"'])
def test_words_are_drawn_in_a_font_of_this_machine(font: str) -> None:
    image, _ = _opened(
        f'<svg {SVG} width="200" height="60"><text x="5" y="40" font-size="30" {font}>Hi</text></svg>'.encode()
    )
    assert min(image.convert("L").tobytes()) < 64


def _nested(depth: int, element: str) -> str:
    return f"<{element}>" * depth + f"</{element}>" * depth


LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
USES = "".join(f'<g id="g{n}">{f"""<use href="#g{n - 1}"/>""" * 10}</g>' for n in range(1, 10))
TURBULENT = '<filter id="f"><feTurbulence baseFrequency="0.1" numOctaves="1000000000"/></filter>'
HOSTILE = {
    "entities": f'<!DOCTYPE svg [<!ENTITY a0 "ha">{LAUGHS}]><svg {SVG}><text>&a9;</text></svg>',
    "another file as entity": f'<!DOCTYPE svg [<!ENTITY a SYSTEM "/etc/passwd">]><svg {SVG}><text>&a;</text></svg>',
    "uses": f'<svg {SVG}><defs><g id="g0"><rect width="9" height="9"/></g>{USES}</defs><use href="#g9"/></svg>',
    "circle": f'<svg {SVG}><g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g></svg>',
    "deep": f"<svg {SVG}>{_nested(900, 'g')}</svg>",
    "deeper": f"<svg {SVG}>{_nested(100_000, 'g')}</svg>",
    "work": f'<svg {SVG}>{TURBULENT}<rect width="300" height="150" filter="url(#f)"/></svg>',
    "broken": f"<svg {SVG}><rect",
    "a file": f'<svg {SVG}><image href="/etc/logo.png" width="9" height="9"/></svg>',
    "the network": f'<svg {SVG}><image xlink:href="http://127.0.0.1:9/a.png" width="9" height="9"/></svg>',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_drawings_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmkit.io.svg.SECONDS", 2)
    with pytest.raises(PictureError) as caught:
        _opened(HOSTILE[name].encode(), 100)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_drawing_within_a_drawing_reads_no_file(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "secret.png")
    inner = f'<svg {SVG} width="50" height="50"><image href="{tmp_path}/secret.png" width="50" height="50"/></svg>'
    url = f"data:image/svg+xml;base64,{base64.b64encode(inner.encode()).decode()}"
    image, _ = _opened(f'<svg {SVG} width="50" height="50"><image href="{url}" width="50" height="50"/></svg>'.encode())
    assert image.getextrema() == ((255, 255),) * 3


def test_folders_tars_and_pipes(vlmkit, tmp_path: Path, photo: Image.Image) -> None:
    raw = dng(photo, (300, 240))
    (tmp_path / "in").mkdir()
    for name, data in {"a.DNG": raw, "b.svg": HALVES.encode(), "c.svgz": gzip.compress(HALVES.encode())}.items():
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in/cut.cr2").write_bytes(raw[:3000])
    done = vlmkit("embed", "in", code=3)
    rows = records(done.stdout)
    assert _names(done.stdout) == ["a.DNG", "b.svg", "c.svgz"] and rows[0]["camera"] == "NIKON D850"
    assert b"cut.cr2: truncated" in done.stderr
    vlmkit("index", "-i", "./i", stdin=done.stdout)
    assert _names(vlmkit("search", "-i", "./i", "--image", "in/a.DNG", "-k", "1").stdout) == ["a.DNG"]
    assert is_picture(HALVES.encode()) and vlmkit("caption", stdin=HALVES.encode()).stdout.strip()


def test_without_the_packages_they_are_counted(vlmkit, tmp_path: Path, monkeypatch, photo: Image.Image) -> None:
    monkeypatch.setattr(kinds, "find_spec", lambda name: None)
    for cached in (kinds.is_installed, kinds.is_decoded):
        cached.cache_clear()
    try:
        picture(tmp_path / "in/a.png")
        for name in ("a.NEF", "b.cr3", "c.jxl", "d.svg", "e.psd"):
            (tmp_path / "in" / name).touch()
        line = vlmkit("embed", "in").stderr.decode()
        assert line.startswith("vlmkit: not read: 2 RAW (cr3, nef), 1 JPEG XL (jxl), 1 psd, 1 SVG: ")
        assert "pip install pillow-jxl-plugin 'vlmkit[raw]' 'vlmkit[svg]'; convert or unpack the others" in line
        for name, data, remedy in (
            ("a.dng", dng(photo), "pip install 'vlmkit[raw]'"),
            ("a.svg", HALVES.encode(), "pip install 'vlmkit[svg]'"),
            ("a.jxl", b"\xff\x0a" + bytes(30), "pip install pillow-jxl-plugin"),
        ):
            (tmp_path / name).write_bytes(data)
            done = vlmkit("embed", name, code=2)
            assert f"pictures need one more package: {remedy}" in done.stderr.decode() and done.stderr.count(b"\n") == 1
    finally:
        for cached in (kinds.is_installed, kinds.is_decoded):
            cached.cache_clear()


def test_jpeg_xl_where_its_package_is(photo: Image.Image) -> None:
    pytest.importorskip("pillow_jxl", reason="JPEG XL needs pillow-jxl-plugin, which is under the GPL")
    out = io.BytesIO()
    photo.save(out, "JXL", lossless=True)
    assert np.array_equal(np.asarray(_opened(out.getvalue(), 100)[0]), np.asarray(photo))
    with pytest.raises(PictureError):
        _opened(out.getvalue()[:-2000], 100)


def test_kinds_are_told_by_name_and_by_content() -> None:
    assert is_picture_name("a.SVG") and is_picture_name("a.nef") and not is_picture_name("a.docx")
    assert SvgDecoder().accepts(HALVES.encode()) and not SvgDecoder().accepts(b"<p>svg</p>")
    assert open_picture(Memory(HALVES.encode()))[1:] == (100, 50)
