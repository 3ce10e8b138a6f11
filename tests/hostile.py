"""A folder of pictures as people have them, and as nobody should: what each is, and what embed must make of it."""

import io
import os
import shutil
import socket
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

ORIENTATION = 0x0112


@dataclass(frozen=True)
class Case:
    """A file by name: `like` is the picture that its vector must be near to, or `error` a part of its reason."""

    name: str
    like: Image.Image | None = None
    error: str = ""


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.copy().save(data, form, **options)  # saving leaves settings in an image, which the next format stumbles over
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG of raw rows, each with its filter byte: for the kinds that Pillow does not write."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def build(folder: Path, photo: Image.Image) -> list[Case]:
    """Write the files into `folder`; `photo` is what most of them show."""
    folder.mkdir(parents=True)
    cases: list[Case] = []

    def add(name: str, data: bytes, like: Image.Image | None = None, error: str = "") -> None:
        (folder / name).write_bytes(data)
        cases.append(Case(name, like, error))

    photo = photo.convert("RGB").resize((320, 240))
    for name, data, like in [*_good(photo), *_oriented(photo)]:
        add(name, data, like)
    for name, data, error in [*_truncated(photo), *_bad(photo)]:
        add(name, data, error=error)
    for name, data, like in _names(photo):
        add(name, data, like)
    return [*cases, *_special(folder, photo)]


def _good(photo: Image.Image) -> Iterator[tuple[str, bytes, Image.Image]]:
    gray = photo.convert("L")
    palette = photo.quantize(256)
    levels = np.asarray(gray).astype(np.uint16) * 257
    other = photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM).rotate(90)
    disc = Image.radial_gradient("L").resize(photo.size).point(lambda v: 255 if v < 128 else 0)
    cut_out = photo.copy()
    cut_out.putalpha(disc)
    quantized = palette.convert("RGB")
    on_white = Image.composite(photo, Image.new("RGB", photo.size, "white"), disc)
    cmyk = photo.convert("CMYK")
    yield "baseline.jpg", encoded(photo, "JPEG", quality=95), photo
    yield "progressive.jpg", encoded(photo, "JPEG", quality=95, progressive=True), photo
    yield "gray.jpg", encoded(gray, "JPEG", quality=95), gray
    yield "cmyk.jpg", encoded(cmyk, "JPEG", quality=95), photo
    yield "cmyk.tif", encoded(cmyk, "TIFF"), photo
    yield "ycck.jpg", _ycck(photo), photo
    yield "burst.mpo.jpg", encoded(photo, "MPO", save_all=True, append_images=[other.copy()], quality=95), photo
    yield "palette.png", encoded(palette, "PNG"), quantized
    yield "palette alpha.png", *_palette_alpha(photo, disc)
    yield "palette alpha.gif", _palette_alpha(photo, disc, "GIF")[0], _palette_alpha(photo, disc)[1]
    yield "alpha.png", encoded(cut_out, "PNG"), on_white
    yield "alpha.webp", encoded(cut_out, "WEBP", lossless=True), on_white
    yield "alpha.tif", encoded(cut_out, "TIFF"), on_white
    yield "gray alpha.png", encoded(cut_out.convert("LA"), "PNG"), on_white.convert("L")
    yield "keyed.png", _keyed(photo), photo
    yield "bilevel.png", encoded(photo.convert("1"), "PNG"), photo.convert("1")
    yield "bilevel.tif", encoded(photo.convert("1"), "TIFF", compression="group4"), photo.convert("1")
    yield "gray16.png", encoded(Image.fromarray(levels), "PNG"), gray
    yield "gray16.tif", encoded(Image.fromarray(levels), "TIFF"), gray
    yield "rgb16.png", _rgb16(photo), photo
    yield "float.tif", encoded(Image.fromarray(np.asarray(gray, np.float32) / 255), "TIFF"), gray
    yield "float nan.tif", encoded(Image.fromarray(_with_nan(gray)), "TIFF"), gray
    yield "lab.tif", encoded(_lab(photo), "TIFF"), photo
    yield "profile.jpg", encoded(photo, "JPEG", quality=95, icc_profile=_profile()), photo
    yield "broken profile.jpg", encoded(photo, "JPEG", quality=95, icc_profile=b"nonsense" * 9), photo
    yield "animated.gif", encoded(palette, "GIF", save_all=True, append_images=[other.copy()]), quantized
    yield "animated.webp", encoded(photo, "WEBP", save_all=True, append_images=[other.copy()], quality=95), photo
    yield "animated.png", encoded(photo, "PNG", save_all=True, append_images=[other.copy()]), photo
    yield "lossy.webp", encoded(photo, "WEBP", quality=95), photo
    yield "lossless.webp", encoded(photo, "WEBP", lossless=True), photo
    yield "picture.avif", encoded(photo, "AVIF", quality=90), photo
    yield "picture.heic", encoded(photo, "HEIF", quality=90), photo
    yield "picture.jp2", encoded(photo, "JPEG2000"), photo
    yield "picture.bmp", encoded(photo, "BMP"), photo
    yield "palette.bmp", encoded(palette, "BMP"), quantized
    yield "picture.ppm", encoded(photo, "PPM"), photo
    yield "pages.tif", encoded(photo, "TIFF", save_all=True, append_images=[other.copy()]), photo
    yield "lzw.tif", encoded(photo, "TIFF", compression="tiff_lzw"), photo
    yield "deflate.tif", encoded(photo, "TIFF", compression="tiff_adobe_deflate"), photo
    yield "jpeg.tif", encoded(photo, "TIFF", compression="jpeg", quality=95), photo
    yield "tiled.tif", _tiled(photo), photo
    yield "one pixel.png", encoded(Image.new("RGB", (1, 1), "red"), "PNG"), Image.new("RGB", (224, 224), "red")
    yield "flat.png", encoded(photo.resize((3000, 2)), "PNG"), photo.resize((3000, 2)).crop((1499, 0, 1501, 2))
    yield (
        "tall.jpg",
        encoded(photo.resize((2, 3000)), "JPEG", quality=95, subsampling=0),
        photo.resize((2, 3000)).crop((0, 1499, 2, 1501)),
    )
    yield "huge.png", encoded(Image.new("L", (10_000, 6_000), 77), "PNG", compress_level=1), Image.new("L", (9, 9), 77)
    yield "text bomb.png", _text_bomb(photo), photo
    yield "a png.jpg", encoded(photo, "PNG"), photo
    yield "a webp.JPG", encoded(photo, "WEBP", quality=95), photo
    yield (
        "corrupt exif.jpg",
        encoded(photo, "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x99" * 40),
        photo,
    )


def _oriented(photo: Image.Image) -> Iterator[tuple[str, bytes, Image.Image]]:
    turns = [None, None, *(getattr(Image.Transpose, n) for n in ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM"))]
    turns += [getattr(Image.Transpose, n) for n in ("TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270")]
    for value in range(1, 9):  # stored so that this orientation makes it upright again
        stored = photo.copy() if turns[value] is None else photo.transpose(turns[value])
        exif = _exif(value)
        yield f"turned {value}.jpg", encoded(stored, "JPEG", quality=95, exif=exif), photo
        for form, end in (("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("AVIF", "avif"), ("HEIF", "heic")):
            if value not in (3, 5, 6):
                continue
            if form == "HEIF":  # the turn stands in the container too, and pillow-heif makes it
                stored.info["exif"] = exif
                yield f"turned {value}.{end}", encoded(stored, form, quality=95), photo
            else:
                quality = {} if form in ("PNG", "TIFF") else {"quality": 95}
                yield f"turned {value}.{end}", encoded(stored, form, exif=exif, **quality), photo
    for value in (0, 9, 65535):
        yield f"nonsense turn {value}.jpg", encoded(photo, "JPEG", quality=95, exif=_exif(value)), photo


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def _truncated(photo: Image.Image) -> Iterator[tuple[str, bytes, str]]:
    """Each format cut in the middle and near its end."""
    forms: list[tuple[str, str, dict[str, object]]] = [
        ("jpg", "JPEG", {}),
        ("progressive.jpg", "JPEG", {"progressive": True}),
        ("png", "PNG", {}),
        ("gif", "GIF", {"save_all": True, "append_images": [photo.rotate(90)]}),
        ("webp", "WEBP", {}),
        ("lossless.webp", "WEBP", {"lossless": True}),
        ("avif", "AVIF", {}),
        ("heic", "HEIF", {}),
        ("jp2", "JPEG2000", {}),
        ("bmp", "BMP", {}),
        ("ppm", "PPM", {}),
        ("tif", "TIFF", {}),
        ("lzw.tif", "TIFF", {"compression": "tiff_lzw"}),
        ("pages.tif", "TIFF", {"save_all": True, "append_images": [photo.rotate(90)]}),
    ]
    for end, form, options in forms:
        data = encoded(photo, form, **options)
        yield f"cut half.{end}", data[: len(data) // 2], ""
        yield f"cut tail.{end}", data[: len(data) * 49 // 50], ""
    yield "cut early.jpg", encoded(photo, "JPEG")[:200], ""
    for form, end in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("AVIF", "avif")):
        data = encoded(photo, form)
        yield f"zeros at the end.{end}", data[: len(data) // 2] + bytes(len(data) - len(data) // 2), ""
    data = bytearray(encoded(photo, "PNG"))
    data[len(data) // 2] ^= 0x55
    yield "flipped bits.png", bytes(data), ""


def _bad(photo: Image.Image) -> Iterator[tuple[str, bytes, str]]:
    yield "empty.jpg", b"", "empty"
    yield "text.jpg", b"I am no picture\n" * 20, "not a picture"
    yield "page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", "web page"
    yield "drawing.png", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect', "SVG"
    yield "zeros.png", bytes(5000), "not a picture"
    yield "script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"
    yield "bomb.png", png(60_000, 60_000, 8, 0, b""), "too many pixels"
    yield "bomb.bmp", _bmp_bomb(photo), "too many pixels"
    yield "bomb.gif", b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;", "pixels"
    yield "no rows.png", png(64, 64, 8, 2, b""), ""
    yield "no pixels.png", png(0, 0, 8, 2, b""), ""
    yield "scans.jpg", _scans(photo), "scans"
    yield "header.tif", b"II*\0\xff\xff\xff\x7f", ""
    fax = bytearray(encoded(photo.convert("1"), "TIFF", compression="group4"))
    for at in range(len(fax) // 4, len(fax) // 2, 99):  # not in the directory behind the strips
        fax[at] ^= 0x55
    yield "flipped fax.tif", bytes(fax), "damaged"
    yield "loop.tif", _endless_tiff(), ""


def _names(photo: Image.Image) -> Iterator[tuple[str, bytes, Image.Image]]:
    data = encoded(photo, "JPEG", quality=95)
    for name in (
        "new\nline.jpg",
        "tab\tquote\"'.jpg",
        "-o.jpg",
        "übung 日本.JPEG",
        "a,b;$(x)*?.jpg",
        " .jpg",
        "x" * 251 + ".jpg",
    ):
        yield name, data, photo


def _special(folder: Path, photo: Image.Image) -> Iterator[Case]:
    os.mkfifo(folder / "fifo.jpg")
    yield Case("fifo.jpg", error="not a regular file")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket is short
        listener.bind("socket.jpg")
        os.chdir(here)
    yield Case("socket.jpg", error="not a regular file")
    (folder / "device.jpg").symlink_to("/dev/zero")
    yield Case("device.jpg", error="not a regular file")
    (folder / "dangling.jpg").symlink_to("nothing.jpg")
    yield Case("dangling.jpg", error="broken symbolic link")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    yield Case("circle.jpg", error="symbolic links")
    with open(folder / "sparse.jpg", "wb") as file:
        file.truncate(1 << 40)
    yield Case("sparse.jpg", error="more than a picture has")
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.png").write_bytes(encoded(photo, "PNG"))
    (folder / "folder.jpg" / "loop").symlink_to(folder)
    yield Case("folder.jpg/inside.png", like=photo)
    locked = folder / "locked.jpg"
    locked.write_bytes(encoded(photo, "JPEG", quality=95))
    locked.chmod(0)
    # The superuser reads it all the same.
    yield Case("locked.jpg", photo) if os.access(locked, os.R_OK) else Case("locked.jpg", error="Permission denied")
    assert stat.S_ISFIFO(os.stat(folder / "fifo.jpg").st_mode)
    shutil.copy(
        locked if os.access(locked, os.R_OK) else folder / "baseline.jpg", os.fsencode(folder) + b"/caf\xe9.jpg"
    )
    yield Case("caf\\xe9.jpg", error="not UTF-8")


def _palette_alpha(photo: Image.Image, mask: Image.Image, form: str = "PNG") -> tuple[bytes, Image.Image]:
    """Colour 255 of the palette is transparent; and how that looks on white."""
    palette = photo.quantize(255)
    like = Image.composite(palette.convert("RGB"), Image.new("RGB", photo.size, "white"), mask)
    palette.paste(255, mask=mask.point(lambda v: 255 - v))
    palette.putpalette([*palette.getpalette()[:765], 0, 255, 0])  # what is transparent would be green
    return encoded(palette, form, transparency=255), like


def _keyed(photo: Image.Image) -> bytes:
    """RGB with one transparent colour, which is not in the picture."""
    return encoded(photo.point(lambda v: min(v, 254)), "PNG", transparency=(255, 255, 255))


def _rgb16(photo: Image.Image) -> bytes:
    wide = (np.asarray(photo).astype(">u2") * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    return png(photo.width, photo.height, 16, 2, rows)


def _with_nan(gray: Image.Image) -> np.ndarray:
    levels = np.asarray(gray, np.float32) * 3.7
    levels[0, :2] = np.nan, np.inf
    return levels


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _lab(photo: Image.Image) -> Image.Image:
    lab = ImageCms.profileToProfile(
        photo, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    return lab


def _ycck(photo: Image.Image) -> bytes:
    """A CMYK JPEG whose Adobe marker says YCCK: the three colours go through YCbCr before they are stored."""
    cyan, magenta, yellow, black = photo.convert("CMYK").split()
    # Pillow stores CMYK inverted; YCCK is the YCbCr of what is then taken for RGB.
    inverted = [band.point(lambda v: 255 - v) for band in (cyan, magenta, yellow)]
    y, cb, cr = Image.merge("RGB", inverted).convert("YCbCr").split()
    stored = Image.merge("CMYK", [*(band.point(lambda v: 255 - v) for band in (y, cb, cr)), black])
    data = encoded(stored, "JPEG", quality=97)
    at = data.index(b"Adobe")
    return data[: at + 11] + b"\x02" + data[at + 12 :]


def _tiled(photo: Image.Image) -> bytes:
    """An uncompressed TIFF of 64 x 64 tiles, which Pillow reads but does not write."""
    across, down = -(-photo.width // 64), -(-photo.height // 64)
    page = Image.new("RGB", (across * 64, down * 64))
    page.paste(photo)
    tiles = [
        page.crop((x * 64, y * 64, x * 64 + 64, y * 64 + 64)).tobytes() for y in range(down) for x in range(across)
    ]
    count = len(tiles)
    entries = [(256, 4, 1, photo.width), (257, 4, 1, photo.height), (258, 3, 3, 0), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(277, 3, 1, 3), (322, 4, 1, 64), (323, 4, 1, 64), (324, 4, count, 0), (325, 4, count, 0)]
    after = 8 + 2 + 12 * len(entries) + 4
    places = {258: after, 324: after + 8, 325: after + 8 + 4 * count}
    start = after + 8 + 8 * count
    ifd = struct.pack("<H", len(entries))
    ifd += b"".join(struct.pack("<HHII", tag, kind, n, places.get(tag, value)) for tag, kind, n, value in entries)
    offsets = struct.pack(f"<{count}I", *(start + 12288 * i for i in range(count)))
    sizes = struct.pack(f"<{count}I", *[12288] * count)
    return b"II*\0\x08\0\0\0" + ifd + bytes(4) + struct.pack("<4H", 8, 8, 8, 0) + offsets + sizes + b"".join(tiles)


def _endless_tiff() -> bytes:
    """The next page of the only page is itself, and it has no strips."""
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 256, 4, 1, 9) + struct.pack("<I", 8)


def _bmp_bomb(photo: Image.Image) -> bytes:
    data = encoded(photo, "BMP")
    return data[:18] + struct.pack("<ii", 60_000, 60_000) + data[26:]


def _text_bomb(photo: Image.Image) -> bytes:
    data = encoded(photo, "PNG")
    return data[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)) + data[33:]


def _scans(photo: Image.Image) -> bytes:
    """A progressive JPEG whose last scan comes a thousand times."""
    data = encoded(photo, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 1000 + data[-2:]
