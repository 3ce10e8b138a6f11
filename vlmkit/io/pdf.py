"""Pages of PDF documents as pictures, by PDFium: `doc.pdf#page=3`.

PDFium has no threads and cannot be stopped, so it runs in processes (`io.pdf_worker`), as many as cores, up to four.
"""

import atexit
import json
import math
import mmap
import os
import re
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vlmkit.io.images import max_pixels
from vlmkit.io.parts import OPEN_END, Choice, Part
from vlmkit.io.records import Record
from vlmkit.io.sources import SMALLEST, Bytes, MissingMember, NoPictures, PictureError, Source
from vlmkit.io.terminal import warn

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS = 2_800_000  # of a page, whatever its paper: A4 at 170 dots an inch, at which small print can be read
LONGEST = 8192  # pixels of a side
MOST_PAGES = 10_000  # of one document, unless --pages asks for more: a kilobyte can hold millions
SECONDS = 30.0  # for one page
LATE = f"a page of it takes more than {SECONDS:.0f} s"
MOST_WORKERS = 4
MOST_DAMAGED = 100  # pages in succession, after which the worker tries no further ones
END_BYTES = 1 << 16  # at the end of a file, in which its mark stands
MOST_BYTES = 3 * (PIXELS + 2 * LONGEST + 1)  # of a page: sides are rounded up
PAGE = re.compile(r"page=([1-9]\d{0,8})")

_tell = lru_cache(maxsize=1024)(warn)  # once, though what counts inputs reads them, too


class Page(Part):
    """A page. The field `page` counts from 1."""

    __slots__ = ()

    def image(self, size: int | None = None) -> "tuple[Image, int, int]":
        from PIL import Image

        limits = {"size": size, "pixels": min(PIXELS, max_pixels()), "longest": LONGEST}
        said, data = _ask("draw", self.file, number=self.fields["page"], **limits)
        return Image.frombytes("RGB", tuple(said["drawn"]), data), said["width"], said["height"]

    def details(self) -> Record:
        """Its text layer as `ocr`. Nothing for a page that cannot be read: who opens it is told."""
        try:
            text = _plain(_ask("text", self.file, number=self.fields["page"])[0]["text"])
        except PictureError:
            return {}
        return {"ocr": text} if text else {}


class PdfReader:
    """Documents whose members are their pages, `page=1` and so on."""

    separator = "#"
    holds_files = False
    requires = ("pypdfium2", "pdf")

    def members(self, file: Source) -> Iterator[tuple[str, Bytes]]:
        return self.chosen(file, Choice())

    def chosen(self, file: Source, choice: Choice) -> Iterator[tuple[str, Bytes]]:
        if file.size < SMALLEST and file.read().startswith(b"%PDF-"):
            raise NoPictures("the file ends behind its header")
        wanted = choice.pages or (range(1, MOST_PAGES + 1),)
        found, _ = _ask("survey", file, ranges=[(one.start, one.stop) for one in wanted])
        count, damaged = found["count"], set(found["damaged"])
        numbers = sorted({number for one in wanted for number in range(one.start, min(one.stop, count + 1))})
        if not numbers:
            raise PictureError(f"it has {_pages(count)}" + ", none of them in --pages" * (choice.pages is not None))
        if any(one.start > count or count + 1 < one.stop < OPEN_END for one in choice.pages or ()):
            _tell(f"{file.path} has {_pages(count)}: those of --pages beyond it are not there")
        last = max(damaged, default=0) if len(damaged) >= MOST_DAMAGED else OPEN_END
        for number in numbers:
            if number not in damaged and number < last:
                yield f"page={number}", Page(file, {"page": number})
        _complain(file, count, [number for number in numbers if number in damaged or number > last], choice)

    def open(self, file: Source, member: str) -> Bytes:
        if (found := PAGE.fullmatch(member)) is None:
            raise MissingMember("pages are called #page=1 and so on")
        count, number = _page_count(file), int(found[1])
        if number > count:
            if _is_cut(file):
                raise PictureError(_cut(count))
            raise MissingMember(f"the document has {_pages(count)}")
        return Page(file, {"page": number})


def _complain(file: Source, count: int, damaged: list[int], choice: Choice) -> None:
    """Raise PictureError for what of a document could not be read, or was not."""
    if damaged:
        raise PictureError(f"damaged, {_named(damaged)} cannot be read")
    if _is_cut(file):
        if choice.pages is None:
            raise PictureError(_cut(count))
        _tell(f"{file.path}: {_cut(count)}")
    if choice.pages is None and count > MOST_PAGES:
        error = PictureError(f"it has {count:,} pages, of which the first {MOST_PAGES:,} were read")
        error.remedy = f"ask for others with --pages {MOST_PAGES + 1}-"
        raise error


def _pages(count: int) -> str:
    return "1 page" if count == 1 else f"{count:,} pages"


def _named(numbers: list[int]) -> str:
    if len(numbers) > 3:
        return f"{len(numbers):,} pages between {numbers[0]} and {numbers[-1]}"
    return ("page " if len(numbers) == 1 else "pages ") + ", ".join(map(str, numbers))


def _cut(count: int) -> str:
    return f"the file ends too early: it has {_pages(count)}, what stood behind is lost"


def _is_cut(file: Source) -> bool:
    """Whether the mark at the end of a document is missing."""
    try:
        with open(file.path, "rb") as stream:
            stream.seek(file.offset + max(0, file.size - END_BYTES))
            return b"%%EOF" not in stream.read(min(file.size, END_BYTES))
    except OSError as error:
        raise PictureError(error.strerror or str(error)) from None


@lru_cache(maxsize=16)
def _page_count(file: Source) -> int:
    return int(_ask("survey", file, ranges=[])[0]["count"])


def _plain(text: str) -> str:
    """The words of a text layer, lines kept; a hyphen at the end of a line comes as U+FFFE or U+0002."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufffe", "-").replace("\x02", "-")
    lines = ("".join(c for c in line if c.isprintable() or c == "\t").strip() for line in text.split("\n"))
    return "\n".join(lines).strip()


class _Worker:
    """A process of `io.pdf_worker`, and the memory for pixels that it shares."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        program = str(Path(__file__).with_name("pdf_worker.py"))
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with _shared_file() as file:
            self._pixels = mmap.mmap(file.fileno(), MOST_BYTES)
            words = [sys.executable, "-P", program, str(file.fileno())]
            # Not of the terminal's group: Ctrl-C is for this process, which ends the others.
            self._process = subprocess.Popen(
                words, bufsize=0, start_new_session=True, pass_fds=[file.fileno()], **pipes
            )

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The reply, and the pixels of a page, RGB. Raises OSError or EOFError where it ended, TimeoutError where it
        takes too long."""
        end = time.monotonic() + SECONDS
        replies: Any = self._process.stdout
        self._process.stdin.write(json.dumps(request).encode() + b"\n")  # type: ignore[union-attr]
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([replies], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            if not (data := os.read(replies.fileno(), 1 << 16)):
                raise EOFError
            line += data
        said = json.loads(line)
        return said, self._pixels[: 3 * math.prod(said["drawn"])] if "drawn" in said else b""

    def end(self) -> None:
        if self.owner == os.getpid():
            self._process.kill()
            self._process.communicate()
            self._pixels.close()


def _shared_file() -> IO[bytes]:
    """A file without a name, in memory where there are such."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("vlmkit-page"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    file.truncate(MOST_BYTES)
    return file


_places = threading.Semaphore(min(MOST_WORKERS, len(os.sched_getaffinity(0))))
_idle: list[_Worker] = []
_late: set[tuple[Source, int | None]] = set()  # pages that are not tried again


@atexit.register
def _end() -> None:
    while _idle:
        _idle.pop().end()


def _ask(does: str, file: Source, **rest: Any) -> tuple[dict[str, Any], bytes]:
    """What a worker replies. Raises PictureError."""
    late = (file, rest.get("number"))
    with _places:
        if late in _late:
            raise PictureError(LATE)
        worker = _idle.pop() if _idle else _Worker()
        if worker.owner != os.getpid():  # of the process that this one was forked from
            _idle.clear()
            worker = _Worker()
        is_well = False
        try:
            said, data = worker.ask({"does": does, "file": list(file), **rest})
            is_well = True
        except TimeoutError:
            _late.add(late)
            raise PictureError(LATE) from None
        except (OSError, EOFError, ValueError):
            raise PictureError("damaged: PDFium crashed") from None
        finally:
            if is_well:
                _idle.append(worker)
            else:
                worker.end()
    if "error" in said:
        error = PictureError(said["error"])
        error.remedy = said.get("remedy", "")
        raise error
    return said, data
