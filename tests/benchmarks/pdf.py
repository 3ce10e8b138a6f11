"""Pages a second of the reader of PDF documents against pypdfium2 alone at the same size, CPU time and memory.

python tests/benchmarks/pdf.py [PAGES]
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {"224": 224, "whole": None}


def make(path: Path, pages: int) -> None:
    """A document with text, drawings and, on every tenth page, a photograph of its own."""
    import numpy as np
    from PIL import Image
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    random = np.random.default_rng(0)
    canvas = Canvas(str(path))
    for page in range(pages):
        lines = canvas.beginText(50, 780)
        lines.textLines([f"Line {line} of page {page}: what a page of a report says" for line in range(45)])
        canvas.drawText(lines)
        for x in range(50, 500, 10):
            canvas.line(x, 50, 550 - x, 140)
        if page % 10 == 0:
            noise = Image.fromarray(random.integers(0, 255, (60, 80, 3), np.uint8)).resize((1600, 1200))
            canvas.drawImage(ImageReader(noise), 350, 500, 200, 150)
        canvas.showPage()
    canvas.save()


def alone(path: Path, size: int | None) -> int:
    """By the documented call of pypdfium2."""
    import pypdfium2

    document = pypdfium2.PdfDocument(path)
    for page in document:
        width, height = page.get_size()
        scale = (2_800_000 / (width * height)) ** 0.5
        scale = min(scale, 1.6 * size / min(width, height)) if size else scale
        page.render(scale=scale, rev_byteorder=True).to_pil()
        page.close()
    return len(document)


def reader(path: Path, size: int | None) -> int:
    """As `vlmkit embed` reads, with two threads."""
    from vlmkit.io.executor import ahead
    from vlmkit.io.images import open_picture
    from vlmkit.io.pdf import _end
    from vlmkit.io.sources import members

    pages = (source for _, source in members(str(path)))
    count = sum(1 for _ in ahead(pages, lambda page: open_picture(page, size)[0].size, 2, 16))
    _end()
    return count


def spent() -> float:
    """Seconds of all cores."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    if sys.argv[1:2] == ["make"]:
        return make(Path(sys.argv[2]), int(sys.argv[3]))
    if len(sys.argv) == 4:
        who, path, size = sys.argv[1:]
        begun, cpu = time.perf_counter(), spent()
        pages = {"alone": alone, "reader": reader}[who](Path(path), SIZES[size])
        seconds, cpu = time.perf_counter() - begun, spent() - cpu
        own, other = (resource.getrusage(w).ru_maxrss / 1024 for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        memory = f"{own:.0f} MB" + (f" and {other:.0f} MB a worker" if who == "reader" else "")
        print(f"{who:7} {size:6} {pages / seconds:7.0f} pages/s  {1000 * cpu / pages:6.2f} ms of CPU a page  {memory}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pages.pdf"
        pages = sys.argv[1] if len(sys.argv) > 1 else "1000"
        # In a process of its own: those started from here would count its memory as theirs.
        subprocess.run([sys.executable, __file__, "make", str(path), pages], check=True)
        print(f"{path.stat().st_size / 1e6:.1f} MB")
        for size in SIZES:
            for who in ("alone", "reader") * 3:
                subprocess.run([sys.executable, __file__, who, str(path), size], check=True)


if __name__ == "__main__":
    main()
