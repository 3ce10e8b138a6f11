"""Open pictures: from files and tar members, verified, rotated as the camera meant, decoded ahead in order."""

import io
import os
import stat
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
PICTURE_SUFFIXES |= {".heic", ".heif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2"}

In = TypeVar("In")
Out = TypeVar("Out")


class PictureError(Exception):
    """This picture cannot be used; the text says why."""


class Source(NamedTuple):
    """Where a picture is: a file, or a stretch of a tar file. `size` in bytes, `mtime` in seconds since 1970."""

    path: str
    offset: int
    size: int
    mtime: float

    def read(self) -> bytes:
        try:
            number = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
            with open(number, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise PictureError(error.strerror or str(error)) from None
        if len(data) < self.size:
            raise PictureError("the file ends too early")
        return data


def is_picture_name(name: str) -> bool:
    """Whether the extension, in any case, is that of a picture."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def locate(path: str) -> Source:
    """The source of a picture by path; `/…/shard.tar/member.jpg` is a member of a tar file. Raises PictureError."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        member = _locate_member(path)
        if member is None:
            raise PictureError("no such file" if isinstance(error, OSError) else str(error)) from None
        return member
    if not stat.S_ISREG(found.st_mode):
        raise PictureError("not a regular file")
    return Source(path, 0, found.st_size, found.st_mtime)


def _locate_member(path: str) -> Source | None:
    head, mark, name = path.partition(".tar/")
    while mark:
        tar = head + ".tar"
        if os.path.isfile(tar):
            return _members(tar, os.stat(tar).st_mtime_ns).get(name)
        more, mark, name = name.partition(".tar/")
        head = f"{tar}/{more}"
    return None


def is_member(path: str) -> bool:
    """Whether `path` is that of a member of a tar file."""
    return not os.path.lexists(path) and _locate_member(path) is not None


@lru_cache(maxsize=8)
def _members(tar: str, _mtime: int) -> dict[str, Source]:
    return dict(tar_members(tar))


def tar_members(path: str) -> Iterator[tuple[str, Source]]:
    """Names and sources of the regular members of an uncompressed tar file, in its order, in bounded memory.

    Raises PictureError at the place where the file is damaged.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            end = os.path.getsize(path)
            while member := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                if not member.isreg() or member.sparse is not None:
                    continue
                if member.offset_data + member.size > end:
                    raise PictureError(f"the tar file ends inside {member.name}")
                yield member.name, Source(path, member.offset_data, member.size, float(member.mtime))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise PictureError(f"damaged tar file ({error})") from None


def open_picture(source: Source, size: int | None = None) -> tuple["Image", int, int]:
    """Decode a picture wholly: (RGB image, width, height), rotated by its EXIF orientation.

    `width` and `height` are in pixels of the original. With `size`, a JPEG may be decoded at a fraction of its size,
    with no side under twice `size` (Pillow's `draft`, which scales in the DCT domain). Raises PictureError.
    """
    from PIL import Image, ImageOps

    data = source.read()
    if not data:
        raise PictureError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if size and image.format == "JPEG":
                image.draft("RGB", (2 * size, 2 * size))
            upright = ImageOps.exif_transpose(_eight_bit(image))
            if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
                width, height = height, width
            return _rgb(upright), width, height
    except Image.DecompressionBombError:
        raise PictureError("the picture has too many pixels to be opened safely") from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, ArithmeticError) as error:
        # Pillow's decoders raise all of these on damaged files.
        raise PictureError(_reason(error)) from None


def _reason(error: Exception) -> str:
    text = str(error)
    return "not a picture that can be read" if text.startswith("cannot identify image") else text or repr(error)


def _eight_bit(image: "Image") -> "Image":
    """16-bit and float grey scaled to 8 bits: Pillow's own conversion would clip it to white."""
    import numpy as np
    from PIL import Image

    image.load()
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    levels = np.asarray(image, np.float32)
    top = 65535.0 if image.mode != "F" else float(np.nanmax(levels, initial=1.0))
    scaled = Image.fromarray((np.nan_to_num(levels).clip(0, top) * (255 / top)).astype(np.uint8))
    if 0x0112 in image.getexif():
        scaled.getexif()[0x0112] = image.getexif()[0x0112]
    return scaled


def _rgb(image: "Image") -> "Image":
    """RGB; transparent parts become white, as on a page."""
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")


def ahead(items: Iterable[In], work: Callable[[In], Out], workers: int, depth: int) -> Iterator[Out]:
    """`work(item)` for each item in threads, in order, with at most `depth` results waiting."""
    waiting: deque[Future[Out]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
