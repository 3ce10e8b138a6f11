"""SVG drawings, by resvg: as they are, on white, without other files and without the network.

A small drawing can ask for any amount of work, and crash what draws it, so a process of its own draws it.
"""

import gzip
import io
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from vlmkit.io.images import decode
from vlmkit.io.sources import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

GZIP = b"\x1f\x8b"
MOST_BYTES = 1 << 25  # of a drawing, unpacked
SECONDS = 20  # of drawing
# Its argument: whether fonts are needed, which takes a while. resvg's own generic families are fonts of Windows.
DRAW = """
import resource, shutil, subprocess, sys
from resvg_py import svg_to_bytes
families = {}
if sys.argv[1] == "True" and shutil.which("fc-match"):
    for name in ("serif", "sans-serif", "monospace"):
        words = ["fc-match", "-f", "%{family[0]}", name]
        families[name.replace("-", "_") + "_family"] = subprocess.run(words, capture_output=True, text=True).stdout
    families["font_family"] = families["sans_serif_family"]
resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
try:
    drawn = svg_to_bytes(
        svg_string=sys.stdin.read(), background="white", skip_system_fonts=sys.argv[1] == "False", **families
    )
except ValueError as error:
    sys.exit(str(error))
sys.stdout.buffer.write(bytes(drawn))
"""
HEAD = 4096
MOST_PIXELS = 4096  # of a side
LEAST, MOST = 1e-3, 1e9  # pixels of a natural size
DEFAULT = (300.0, 150.0)  # pixels of what has no size, as in CSS
LENGTH = re.compile(r"\s*\+?(\d*\.?\d+(?:e[+-]?\d+)?)\s*(px|pt|pc|mm|cm|in|em|ex)?\s*", re.IGNORECASE)
PIXELS = {"": 1, "px": 1, "pt": 4 / 3, "pc": 16, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96, "em": 16, "ex": 8}
SHOWN = {"image", "feImage", "use", "script"}  # elements that bring in what `href` names


class SvgDecoder:
    def accepts(self, data: bytes) -> bool:
        try:
            head = gzip.GzipFile(fileobj=io.BytesIO(data)).read(HEAD) if data.startswith(GZIP) else data[:HEAD]
        except (OSError, EOFError):
            return False
        head = head.lstrip(b"\xef\xbb\xbf \t\r\n")
        return head.startswith(b"<") and re.search(rb"<(\w+:)?svg[\s>]", head) is not None

    def decode(self, data: bytes, size: int | None) -> tuple["Image", dict[str, Any]]:
        """With `size` its shorter side has twice that, as far as the longer one allows it."""
        root = _parsed(_unpacked(data))
        width, height = _natural_size(root)
        least, most = min(width, height), max(width, height)
        scale = min(2 * size / least if size else 1.0, MOST_PIXELS / most)
        root.attrib.setdefault("viewBox", f"0 0 {width:g} {height:g}")
        shape = [max(1, round(scale * side)) for side in (width, height)]
        root.attrib |= {"width": str(shape[0]), "height": str(shape[1])}
        image, _ = decode(_drawn(root), None, ["PNG"])
        natural = shape if not size else [max(1, round(side)) for side in (width, height)]
        return image, {"width": natural[0], "height": natural[1]}


def _drawn(root: ElementTree.Element) -> bytes:
    """The drawing as PNG. Raises PictureError."""
    has_text = any(_name(element.tag) == "text" for element in root.iter())
    try:
        drawing = ElementTree.tostring(root, encoding="utf-8")
        command = [sys.executable, "-P", "-X", "utf8", "-c", DRAW, str(has_text)]
        done = subprocess.run(command, input=drawing, capture_output=True, timeout=SECONDS)
    except RecursionError:
        raise PictureError("the SVG is nested too deep") from None
    except subprocess.TimeoutExpired:
        raise PictureError(f"the SVG was not drawn in {SECONDS} seconds") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() if done.returncode == 1 else "resvg crashed"
        raise PictureError(f"the SVG cannot be drawn ({said})")
    return done.stdout


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(GZIP):
        found = data[: MOST_BYTES + 1]
    else:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            found = file.read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        raise PictureError(f"more than {MOST_BYTES >> 20} MiB, which no drawing has")
    return found


def _parsed(data: bytes) -> ElementTree.Element:
    """The drawing with its own entities put in. Raises PictureError where it needs another file, or is damaged."""
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise PictureError(f"the SVG is damaged ({error})") from None
    for element in root.iter():
        for key, value in element.attrib.items():
            if _name(key) == "href" and _name(element.tag) in SHOWN and not value.strip().startswith(("#", "data:")):
                what = f"the SVG shows another file ({value.strip()[:80]}), which is not read"
                raise PictureError(f"{what}: embed it in the drawing")
    return root


def _name(tag: Any) -> str:
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _natural_size(root: ElementTree.Element) -> tuple[float, float]:
    """Width and height in pixels of CSS; where one is missing or a share of the page, by `viewBox`."""
    width, height = _pixels(root.get("width")), _pixels(root.get("height"))
    try:
        box = [float(part) for part in re.split(r"[\s,]+", root.get("viewBox", "").strip())]
    except ValueError:
        box = []
    box_width, box_height = box[2:] if len(box) == 4 and all(LEAST <= side <= MOST for side in box[2:]) else DEFAULT
    if width and height:
        return width, height
    if width or height:
        scale = width / box_width if width else height / box_height
        return scale * box_width, scale * box_height
    return box_width, box_height


def _pixels(length: str | None) -> float:
    """A length in pixels of CSS; 0 for what is none."""
    found = LENGTH.fullmatch(length or "")
    pixels = float(found[1]) * PIXELS[(found[2] or "").lower()] if found else 0.0
    return min(max(pixels, LEAST), MOST) if pixels else 0.0
