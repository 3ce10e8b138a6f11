"""Pictures as programs write them: what stands beside the pixels does no harm, more bits look as they are."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import records, vector
from hostile import chunk, encoded
from PIL import Image, ImageDraw

HEADER = 33  # bytes of a PNG up to the end of its IHDR chunk


@pytest.fixture(scope="module")
def drawing() -> Image.Image:
    """Grey from 0 to 255."""
    drawing = Image.linear_gradient("L").resize((160, 100))
    pencil, chance = ImageDraw.Draw(drawing), random.Random(3)
    for fill in (0, 255, 40, 220, 90, 150, 60, 240):
        x, y, size = chance.randrange(140), chance.randrange(80), chance.randrange(10, 50)
        pencil.ellipse((x, y, x + size, y + size), fill=fill)
    return drawing


def files(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in contents]


def broken(part: bytes) -> bytes:
    return part[:-1] + bytes([part[-1] ^ 1])


def test_what_stands_beside_the_pixels_costs_no_picture(vlmkit, tmp_path: Path, drawing: Image.Image) -> None:
    plain = encoded(drawing, "PNG")
    much = zlib.compress(b"edited " * 400_000)
    beside = {
        "text": chunk(b"zTXt", b"Comment\0\0" + much),
        "profile": chunk(b"iCCP", b"mine\0\0" + much),
        "no profile": chunk(b"iCCP", b"mine\0\0nothing that unpacks"),
        "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + much),
        "checksums": broken(chunk(b"tEXt", b"Title\0x"))
        + broken(chunk(b"eXIf", b"MM\0*"))
        + broken(chunk(b"pHYs", b"")),
        "exif": chunk(b"eXIf", b"no exif"),
        "unknown": chunk(b"mkBF", b"\xff" * 3_000_000),
    }
    contents = {"plain.png": plain}
    contents |= {f"{name}.png": plain[:HEADER] + extra + plain[HEADER:] for name, extra in beside.items()}
    contents["behind.png"] = plain + b"and more" * 1000
    done = vlmkit("embed", *files(tmp_path, contents))
    first, *others = map(vector, records(done.stdout))
    assert done.stderr == b"" and len(others) == len(contents) - 1 and all((other == first).all() for other in others)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_broken_metadata_of_other_formats(vlmkit, tmp_path: Path, drawing: Image.Image, form: str) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x8825] = "maker", {1: "N"}
    data = exif.tobytes()
    contents = {
        "plain": encoded(drawing, form),
        "exif": encoded(drawing, form, exif=data[:20] + b"\xff" * (len(data) - 20)),
        "profile": encoded(drawing, form, icc_profile=b"\xff" * 2_000_000),
        "behind": encoded(drawing, form) + b"and more" * 1000,
    }
    done = vlmkit("embed", *files(tmp_path, contents))
    first, *others = map(vector, records(done.stdout))
    assert done.stderr == b"" and len(others) == 3 and all((other == first).all() for other in others)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
def test_damage_in_what_pixels_depend_on_is_told(vlmkit, tmp_path: Path, drawing: Image.Image, kind: bytes) -> None:
    data = encoded(drawing.convert("P"), "PNG", transparency=3)
    at = data.index(kind)
    (length,) = struct.unpack_from(">I", data, at - 4)
    spot = at + 4 + length  # of its checksum
    (tmp_path / "a.png").write_bytes(data[:spot] + broken(data[spot : spot + 4]) + data[spot + 4 :])
    assert b"checksum of a " + kind in vlmkit("embed", "a.png", code=2).stderr


def test_orientation_is_kept_wherever_it_stands(vlmkit, tmp_path: Path, drawing: Image.Image) -> None:
    plain, exif = encoded(drawing, "PNG"), Image.Exif()
    exif[0x0112] = 6
    tag = b"<rdf tiff:Orientation='x' tiff:Orientation=\"6\"/>"
    xmp = tag + b"edited " * 300_000
    beside = {
        "exif": chunk(b"eXIf", exif.tobytes()[6:]),
        "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "packed": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0x\0" + zlib.compress(xmp)),
    }
    contents = {f"{name}.png": plain[:HEADER] + extra + plain[HEADER:] for name, extra in beside.items()}
    done = vlmkit("embed", *files(tmp_path, contents))
    assert [(row["width"], row["height"]) for row in records(done.stdout)] == [(100, 160)] * 3


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **{"photometric": "minisblack"} | options)
    return out.getvalue()


WHITE_IS_ZERO = {"photometric": "miniswhite"}
# Levels of 8 bits as others, and how they are written.
GREYS = {
    "16 bits": (lambda v: (v * 257).astype(np.uint16), {}),
    "16 bits, 0 is white": (lambda v: (65535 - v * 257).astype(np.uint16), WHITE_IS_ZERO),
    "16 bits, 0 is white, packed tiles": (
        lambda v: (65535 - v * 257).astype(np.uint16),
        WHITE_IS_ZERO | {"tile": (64, 64), "compression": "zlib"},
    ),
    "16 bits with a sign": (lambda v: (v * 128.4).astype(np.int16), {}),
    "16 bits around 0": (lambda v: (v * 257.0 - 32768).astype(np.int16), {"byteorder": ">"}),
    "8 bits with a sign": (lambda v: (v.astype(int) - 128).astype(np.int8), {}),
    "32 bits": (lambda v: (v * 16843009.0).astype(np.uint32), {}),
    "32 bits of 8": (lambda v: v.astype(np.uint32), {}),
    "32 bits of 8 with a sign": (lambda v: v.astype(np.int32), {"byteorder": ">"}),
    "32 bits of 16": (lambda v: v.astype(np.uint32) * 257, {}),
    "32 bits of a counter": (lambda v: v.astype(np.uint32) * 1000, {}),
    "floats": (lambda v: (v / 255).astype(np.float32), {}),
    "floats, 0 is white": (lambda v: (1 - v / 255).astype(np.float32), WHITE_IS_ZERO),
    "floats around 0": (lambda v: (v / 127.5 - 1).astype(np.float32), {}),
    "floats of 8 bits": (lambda v: v.astype(np.float32), {}),
}


def test_grey_of_more_bits_looks_as_it_is(vlmkit, tmp_path: Path, drawing: Image.Image) -> None:
    levels = np.asarray(drawing, np.uint32)
    contents = {name: tiff(convert(levels), **options) for name, (convert, options) in GREYS.items()}
    contents["png"] = encoded(Image.fromarray((levels * 257).astype(np.uint16)), "PNG")
    contents["jpeg 2000"] = encoded(Image.fromarray((levels * 257).astype(np.uint16)), "JPEG2000")
    contents["pgm"] = b"P5 160 100 1023\n" + (levels * 1023 // 255).astype(">u2").tobytes()
    done = vlmkit("embed", *files(tmp_path, {"grey": encoded(drawing, "PNG"), **contents}))
    grey, *others = records(done.stdout)
    cosines = {Path(row["image"]).name: float(vector(row) @ vector(grey)) for row in others}
    assert cosines.keys() == contents.keys() and {n: c for n, c in cosines.items() if c < 0.99} == {}


def test_layouts_that_cannot_be_read_are_named(vlmkit, tmp_path: Path, drawing: Image.Image) -> None:
    levels = np.asarray(drawing)
    planes = np.stack([levels.astype(np.uint16) * 257] * 3)
    contents = {
        "good": encoded(drawing, "PNG"),
        "planes": tiff(planes, photometric="rgb", planarconfig="separate"),
        "doubles": tiff(levels / 255),
        "colours of 32 bits": tiff(np.stack([levels.astype(np.uint32)] * 3, -1), photometric="rgb"),
        "bands": tiff(np.stack([levels] * 5), planarconfig="separate"),
    }
    done = vlmkit("embed", *files(tmp_path, contents), code=3)
    assert [Path(row["image"]).name for row in records(done.stdout)] == ["good"]
    assert done.stderr.count(b"not supported") == done.stderr.count(b"\n") == 4


def test_the_limit_of_pixels_can_be_set(vlmkit, environment, tmp_path: Path, drawing: Image.Image) -> None:
    paths = files(tmp_path, {"a.png": encoded(drawing, "PNG"), "b.png": encoded(drawing.resize((20, 10)), "PNG")})
    done = vlmkit("embed", *paths, "--max-pixels", "15999", code=3)
    assert len(records(done.stdout)) == 1 and b"160 x 100; the limit is 15,999, --max-pixels N" in done.stderr
    assert vlmkit("embed", *paths, "--max-pixels", "16000").stderr == b""
    environment["VLMKIT_MAX_PIXELS"] = "1000"
    assert b"--max-pixels" in vlmkit("caption", paths[0], code=2).stderr
    assert Image.MAX_IMAGE_PIXELS is not None  # of other code in this process


@pytest.mark.slow
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_pictures_of_200_megapixels(vlmkit, tmp_path: Path, drawing: Image.Image, form: str) -> None:
    small = drawing.resize((640, 480))
    large = small.resize((16320, 12240), Image.Resampling.BILINEAR)
    options = {"compress_level": 1} if form == "PNG" else {"quality": 90}
    contents = {"small": encoded(small, "PNG"), "large": encoded(large, form, **options)}
    of_small, of_large = records(vlmkit("embed", *files(tmp_path, contents)).stdout)
    assert (of_large["width"], of_large["height"]) == large.size and vector(of_small) @ vector(of_large) > 0.99
