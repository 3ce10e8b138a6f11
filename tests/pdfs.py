"""PDF documents that tests make: by reportlab, and hostile ones by hand."""

import zlib
from pathlib import Path

HEAD = "%PDF-1.7\n"
PAGE = "<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/Contents 4 0 R/Resources<<>>>>"


def document(path: Path, *texts: str, size: tuple[float, float] = (595, 842), **options: object) -> Path:
    """A page for each text, its lines kept, and a square whose colour is that of the page's number."""
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), pagesize=size, invariant=1, **options)
    for number, text in enumerate(texts):
        canvas.setFillColorRGB(number % 2, 0.3, number / len(texts))
        canvas.rect(0.3 * size[0], 0.2 * size[1], 0.4 * size[0], 0.4 * size[0], fill=1)
        canvas.setFillColorRGB(0, 0, 0)
        lines = canvas.beginText(0.1 * size[0], 0.9 * size[1])
        lines.setFont("Helvetica", size[1] / 40)
        lines.textLines(text)
        canvas.drawText(lines)
        canvas.showPage()
    canvas.save()
    return path


def written(*objects: str | bytes, root: int = 1, extra: str = "") -> bytes:
    """A document of these objects, numbered from 1, with its table and trailer."""
    data = HEAD.encode()
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n".encode() + (body if isinstance(body, bytes) else body.encode()) + b"\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    trailer = f"trailer <</Size {size}/Root {root} 0 R{extra}>>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + f"xref\n0 {size}\n0000000000 65535 f \n{table}".encode() + trailer.encode()


def stream(data: bytes, about: str = "") -> bytes:
    packed = zlib.compress(data, 9)
    return f"<</Length {len(packed)}/Filter/FlateDecode{about}>>stream\n".encode() + packed + b"\nendstream"


def one_page(content: bytes, page: str = PAGE, *more: str | bytes, catalog: str = "") -> bytes:
    """A document of one page; further objects are numbered from 5."""
    pages = "<</Type/Pages/Kids[3 0 R]/Count 1>>"
    return written(f"<</Type/Catalog/Pages 2 0 R{catalog}>>", pages, page, stream(content), *more)


def hostile() -> dict[str, bytes]:
    """Documents that want to crash, hang or fill whoever reads them, by what they do."""
    catalog, one = "<</Type/Catalog/Pages 2 0 R>>", "<</Type/Pages/Kids[3 0 R]/Count 1>>"
    tree = [
        f"<</Type/Pages/Parent {n - 1} 0 R/Count {10 ** (8 - n)}/Kids[{f'{n + 1} 0 R ' * 10}]>>" for n in range(2, 8)
    ]
    leaf = PAGE.replace("2 0 R", "7 0 R").replace("4 0 R", "9 0 R")
    form = "/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</F {} 0 R>>>>"
    page = PAGE.replace("/Resources<<>>", "/Resources<</XObject<</F 5 0 R>>>>")
    script = "/OpenAction<</S/JavaScript/JS(while(1){app.alert('x')})>>"
    image = "/Type/XObject/Subtype/Image/Width 60000/Height 60000/ColorSpace/DeviceRGB/BitsPerComponent 8"
    empty = written(catalog, "<</Type/Pages/Kids[]/Count 0>>", extra="/Prev 99999")
    line = b"0 0 m 9 9 l S"
    return {
        "pages of themselves": written(catalog, "<</Type/Pages/Kids[2 0 R]/Count 1>>"),
        "a million pages that are not there": written(catalog, one.replace("1>>", "1000000>>"), PAGE, stream(b"")),
        "a million pages in a kilobyte": written(catalog, *tree, leaf, stream(b"")),
        "a form within itself": one_page(b"/F Do", page, stream(b"/F Do", form.format(5))),
        "forms that double": one_page(
            b"/F Do " * 12, page, *(stream(b"/F Do " * 12, form.format(6 + i)) for i in range(12))
        ),
        "a huge page": one_page(line, PAGE.replace("200 100", "2e9 2e9")),
        "a page of no size": one_page(line, PAGE.replace("0 0 200 100", "5 5 5 5")),
        "a strip": one_page(line, PAGE.replace("200 100", "1 1000000")),
        "a script": one_page(line, catalog=script),
        "a table that follows itself": empty.replace(b"99999", b"%05d" % empty.index(b"xref")),
        "deep arrays": one_page(b"[" * 500_000 + b"]" * 500_000 + b" 0 d"),
        "deep states": one_page(b"q " * 200_000),
        "a bomb": one_page(b" " * 50_000_000 + line),
        "a huge picture": one_page(b"200 0 0 100 0 0 cm /F Do", page, stream(b"", image)),
        "a head alone": HEAD.encode(),
        "a length that names its stream": written(catalog, one, PAGE, "<</Length 4 0 R>>stream\nq\nendstream"),
    }
