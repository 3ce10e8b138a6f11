"""Pages of PDF documents as pictures, by PDFium: `doc.pdf#page=3`.

PDFium has no threads, so one lock stands before all of it. It runs no JavaScript, and fetches nothing.
"""

import atexit
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from vlmkit.errors import interruptible
from vlmkit.io.images import max_pixels
from vlmkit.io.parts import OPEN_END, Choice, Part
from vlmkit.io.records import Record
from vlmkit.io.sources import Bytes, MissingMember, PictureError, Source
from vlmkit.io.terminal import warn

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS = 2_800_000  # of a page, whatever its paper: A4 at 170 dots an inch, at which small print can be read
LONGEST = 8192  # pixels of a side
MARGIN = 1.6  # see Part.image
MOST_PAGES = 10_000  # of one document, unless --pages asks for more: a kilobyte can hold millions
MOST_DAMAGED = 100  # pages in succession, after which no further ones are tried
SECONDS = 60.0  # to draw a page
PATIENCE = 5.0  # seconds that the end of the process waits for a page
OPEN_DOCUMENTS = 4  # one is read ahead while pages of the one before are drawn
REOPENED = 256  # pages after which a document is opened anew, as PDFium keeps what it has parsed
END_BYTES = 1 << 16  # at the end of a file, in which its mark stands
PAGE = re.compile(r"page=([1-9]\d{0,8})")
PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD

_pdfium = threading.Lock()
_documents: "OrderedDict[Source, _Document]" = OrderedDict()
_tell = lru_cache(maxsize=1024)(warn)  # once, though what counts inputs reads them, too


class Page(Part):
    """A page. The field `page` counts from 1."""

    __slots__ = ()

    def image(self, size: int | None = None) -> "tuple[Image, int, int]":
        with _errors(self.file), _opened_page(self.file, self.fields["page"]) as (page, forms):
            paper = page.get_size()
            scale = _scale(*paper)
            drawn = _drawn(page, forms, *_pixels(paper, min(scale, MARGIN * size / min(paper)) if size else scale))
        return drawn, *_pixels(paper, scale)

    def details(self) -> Record:
        """Its text layer as `ocr`. Nothing for a page that cannot be read: who opens it is told."""

        def read() -> str:
            with _errors(self.file), _opened_page(self.file, self.fields["page"]) as (page, _):
                words = page.get_textpage()
                try:
                    return words.get_text_bounded()
                finally:
                    words.close()

        try:
            text = _plain(interruptible(read))
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
        count = _page_count(file)
        numbers = _chosen(file, count, choice)
        damaged: list[int] = []
        for number in numbers:
            if _is_there(file, number):
                yield f"page={number}", Page(file, {"page": number})
            else:
                damaged.append(number)
                if damaged[-MOST_DAMAGED:] == list(range(number - MOST_DAMAGED + 1, number + 1)):
                    damaged.append(numbers[-1])
                    break
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

    def open(self, file: Source, member: str) -> Bytes:
        if (found := PAGE.fullmatch(member)) is None:
            raise MissingMember("pages are called #page=1 and so on")
        count, number = _page_count(file), int(found[1])
        if number > count:
            if _is_cut(file):
                raise PictureError(_cut(count))
            raise MissingMember(f"the document has {_pages(count)}")
        return Page(file, {"page": number})


def _chosen(file: Source, count: int, choice: Choice) -> list[int]:
    """The numbers of the pages that are wanted and there, in order. Raises PictureError where there is none."""
    if choice.pages is None:
        return list(range(1, min(count, MOST_PAGES) + 1))
    wanted = [range(one.start, min(one.stop, count + 1)) for one in choice.pages]
    numbers = sorted({number for some in wanted for number in some})
    if not numbers:
        raise PictureError(f"it has {_pages(count)}, none of them in --pages")
    if any(one.start > count or count + 1 < one.stop < OPEN_END for one in choice.pages):
        _tell(f"{file.path} has {_pages(count)}: those of --pages beyond it are not there")
    return numbers


def _pages(count: int) -> str:
    return "1 page" if count == 1 else f"{count:,} pages"


def _named(numbers: list[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f"page {first}"
    return f"pages {first} to {last}" if len(numbers) > 3 else f"pages {', '.join(map(str, numbers))}"


def _cut(count: int) -> str:
    return f"the file ends too early: {_pages(count)} were found, what stood behind is lost"


def _is_cut(file: Source) -> bool:
    """Whether the mark at the end of a document is missing."""
    try:
        with open(file.path, "rb") as stream:
            stream.seek(file.offset + max(0, file.size - END_BYTES))
            return b"%%EOF" not in stream.read(min(file.size, END_BYTES))
    except OSError as error:
        raise PictureError(error.strerror or str(error)) from None


def _page_count(file: Source) -> int:
    def count() -> int:
        with _errors(file), _pdfium:
            return _document(file).count

    return interruptible(count)


def _is_there(file: Source, number: int) -> bool:
    from pypdfium2 import PdfiumError

    with _errors(file), _pdfium:
        try:
            _document(file).pdf.get_page_size(number - 1)
            return True
        except PdfiumError:
            return False


def _scale(wide: float, high: float) -> float:
    """Pixels a unit of the page at which it is read: about PIXELS in all, or `max_pixels` if that is less."""
    if not (math.isfinite(wide * high) and wide * high > 0):
        raise PictureError(f"the size of its page is {wide:g} x {high:g}")
    return min(math.sqrt(min(PIXELS, max_pixels()) / (wide * high)), LONGEST / max(wide, high))


def _pixels(paper: tuple[float, float], scale: float) -> tuple[int, int]:
    """Width and height, as `PdfPage.render` has them."""
    return math.ceil(paper[0] * scale), math.ceil(paper[1] * scale)


def _plain(text: str) -> str:
    """The words of a text layer, lines kept; a hyphen at the end of a line comes as U+FFFE or U+0002."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufffe", "-").replace("\x02", "-")
    lines = ("".join(c for c in line if c.isprintable() or c == "\t").strip() for line in text.split("\n"))
    return "\n".join(lines).strip()


class _Document:
    """An open document, and how many pages of it were opened."""

    def __init__(self, file: Source) -> None:
        from pypdfium2 import PdfDocument

        _close_at_exit()
        self.pdf = PdfDocument(file.read() if file.offset else file.path)
        self.pdf.init_forms()  # before anything else: else their fields are not drawn
        self.count, self.opened = len(self.pdf), 0


@cache
def _close_at_exit() -> None:
    """Have the open documents closed before pypdfium2, imported by now, closes them and says so."""

    def close() -> None:
        if _pdfium.acquire(timeout=PATIENCE):
            while _documents:
                _documents.popitem()[1].pdf.close()
            _pdfium.release()

    atexit.register(close)


def _document(file: Source) -> _Document:
    """The document, which is kept open. The lock must be held."""
    known = _documents.pop(file, None)
    if known is not None and known.opened >= REOPENED:
        known.pdf.close()
        known = None
    _documents[file] = known or _Document(file)
    while len(_documents) > OPEN_DOCUMENTS:
        _documents.popitem(last=False)[1].pdf.close()
    return _documents[file]


@contextmanager
def _opened_page(file: Source, number: int) -> Iterator[tuple[Any, Any]]:
    """A page, and the environment of its form fields or None, with the lock held."""
    with _pdfium:
        document = _document(file)
        if number > document.count:
            raise PictureError(f"the document has {_pages(document.count)}")
        document.opened += 1
        page = document.pdf.get_page(number - 1)
        try:
            yield page, document.pdf.formenv
        finally:
            page.close()


@contextmanager
def _errors(file: Source) -> Iterator[None]:
    """Turn errors of PDFium into PictureError."""
    from pypdfium2 import PdfiumError

    try:
        yield
    except PdfiumError as error:
        if getattr(error, "err_code", None) == PASSWORD_ERROR:
            found = PictureError("it is encrypted with a password")
            found.remedy = "save a copy without the password"
            raise found from None
        what = "not a PDF document that can be read, or damaged" if file.size else "the file is empty"
        raise PictureError(what) from None
    except OSError as error:
        raise PictureError(error.strerror or str(error)) from None
    except MemoryError:
        raise PictureError("not enough memory to draw it") from None


def _drawn(page: Any, forms: Any, width: int, height: int) -> "Image":
    """The page with its annotations and form fields on white, in the pixels of `PdfPage.render`, which knows no limit
    of time. Raises PictureError where it takes longer than SECONDS."""
    from pypdfium2 import PdfBitmap, raw

    bitmap = PdfBitmap.new_native(width, height, raw.FPDFBitmap_BGR, rev_byteorder=True)
    try:
        bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
        placed = (bitmap, page, 0, 0, width, height, 0, raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER)
        pause = raw.IFSDK_PAUSE(version=1)
        pause.NeedToPauseNow = _after(SECONDS, type(pause.NeedToPauseNow))
        status = raw.FPDF_RenderPageBitmap_Start(*placed, pause)
        raw.FPDF_RenderPage_Close(page)
        if status != raw.FPDF_RENDER_DONE:
            late = status == raw.FPDF_RENDER_TOBECONTINUED
            raise PictureError(f"takes more than {SECONDS:.0f} s to draw" if late else "it cannot be drawn")
        if forms:
            raw.FPDF_FFLDraw(forms, *placed)
        return bitmap.to_pil()
    finally:
        bitmap.close()


def _after(seconds: float, kind: Callable[..., Any]) -> Any:
    """What PDFium asks between the objects of a page: whether it should stop."""
    end = time.monotonic() + seconds
    return kind(lambda _: time.monotonic() > end)
