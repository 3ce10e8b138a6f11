"""The process that runs PDFium for `io.pdf`, so that no document can crash, stop or fill vlmkit itself.

Each line of standard input is a request, the reply a line of JSON; pixels go into the memory at the file descriptor of
its argument. It is run by its path, and imports nothing of vlmkit. It runs no JavaScript, and fetches nothing.
"""

import ctypes
import json
import math
import mmap
import sys
from collections import OrderedDict
from typing import IO, Any

import pypdfium2

OPEN_DOCUMENTS = 4
REOPENED = 256  # pages after which a document is opened anew, as PDFium keeps what it has parsed
MOST_DAMAGED = 100  # pages in succession, after which no further ones are tried
MARGIN = 1.6  # see Part.image
PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD

Reply = dict[str, Any]


class Document:
    """An open document, and how many pages of it were opened."""

    def __init__(self, path: str, offset: int, size: int) -> None:
        if offset:
            with open(path, "rb") as file:
                file.seek(offset)
                self.pdf = pypdfium2.PdfDocument(file.read(size))
        else:
            self.pdf = pypdfium2.PdfDocument(path)
        self.pdf.init_forms()  # before anything else: else their fields are not drawn
        self.opened = 0


shared = mmap.mmap(int(sys.argv[1]), 0)
documents: OrderedDict[tuple[Any, ...], Document] = OrderedDict()


def opened(file: list[Any]) -> Document:
    """The document that is [path, offset, size, time], which stays open."""
    key = tuple(file)
    known = documents.pop(key, None)
    if known is not None and known.opened >= REOPENED:
        known.pdf.close()
        known = None
    documents[key] = known or Document(*key[:3])
    while len(documents) > OPEN_DOCUMENTS:
        documents.popitem(last=False)[1].pdf.close()
    return documents[key]


def survey(document: Document, ranges: list[list[int]]) -> Reply:
    """The number of pages, and those in `ranges` (first, end) that are damaged, the last one if no more were tried."""
    count = len(document.pdf)
    damaged: list[int] = []
    for number in (n for first, end in ranges for n in range(first, min(end, count + 1))):
        try:
            document.pdf.get_page_size(number - 1)
        except pypdfium2.PdfiumError:
            damaged.append(number)
            if damaged[-MOST_DAMAGED:] == [*range(number - MOST_DAMAGED + 1, number + 1)]:
                break
    return {"count": count, "damaged": damaged}


def text(document: Document, number: int) -> Reply:
    """The text layer of a page."""
    document.opened += 1
    page = document.pdf.get_page(number - 1)
    words = page.get_textpage()
    try:
        return {"text": words.get_text_bounded()}
    finally:
        words.close()
        page.close()


def draw(document: Document, number: int, size: int | None, pixels: int, longest: int) -> Reply:
    """A page as RGB, with annotations and form fields: about `pixels` in all, less if `size` needs less; no side above
    `longest`. `width` and `height` are those without `size`."""
    document.opened += 1
    page = document.pdf.get_page(number - 1)
    try:
        wide, high = page.get_size()
        if not (math.isfinite(wide * high) and wide * high > 0):
            return {"error": f"the size of its page is {wide:g} x {high:g}"}
        scale = whole = min(math.sqrt(pixels / (wide * high)), longest / max(wide, high))
        if size:
            scale = min(whole, MARGIN * size / min(wide, high))
        bitmap = page.render(scale=scale, rev_byteorder=True, bitmap_maker=in_shared)
        drawn = [bitmap.width, bitmap.height]
        bitmap.close()
        return {"drawn": drawn, "width": math.ceil(wide * whole), "height": math.ceil(high * whole)}
    finally:
        page.close()


def in_shared(width: int, height: int, **how: Any) -> Any:
    """A bitmap of three bytes a pixel whose memory vlmkit reads."""
    pixels = (ctypes.c_ubyte * (3 * width * height)).from_buffer(shared)
    return pypdfium2.PdfBitmap.new_native(width, height, buffer=pixels, **how)


DOES = {"survey": survey, "text": text, "draw": draw}


def answer(does: str, file: list[Any], **rest: Any) -> Reply:
    try:
        return DOES[does](opened(file), **rest)  # type: ignore[operator]
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == PASSWORD_ERROR:
            return {"error": "it is encrypted with a password", "remedy": "save a copy without the password"}
        empty = file[2] == 0
        return {"error": "the file is empty" if empty else "not a PDF document that can be read, or damaged"}
    except OSError as error:
        return {"error": error.strerror or str(error)}
    except (MemoryError, ValueError) as error:
        return {"error": str(error) or "not enough memory to draw it"}


def run(requests: IO[bytes], replies: IO[bytes]) -> None:
    for line in requests:
        replies.write(json.dumps(answer(**json.loads(line))).encode() + b"\n")
        replies.flush()
    for document in documents.values():
        document.pdf.close()


if __name__ == "__main__":
    run(sys.stdin.buffer, sys.stdout.buffer)
