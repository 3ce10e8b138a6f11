"""Pictures in a terminal, by the protocols of kitty, iTerm2 and sixel.

Written from their specifications: https://sw.kovidgoyal.net/kitty/graphics-protocol/,
https://iterm2.com/documentation-images.html, https://vt100.net/docs/vt3xx-gp/chapter14.html. The libraries at hand
know two of the three (textual-image) or want an old Pillow (term-image).
"""

import base64
import io
import os
import re
import select
import struct
import time
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING

from vlmkit.errors import VlmkitError
from vlmkit.io.sources import PictureError
from vlmkit.render.html import thumbnail

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

ROWS = 8  # of text, that a picture is high
CELL = (8, 16)  # pixels of a character, where the terminal does not tell
ANSWER_SECONDS = 2.0
CHUNK = 4096  # the most that kitty takes in one command
ASK = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c"  # does it speak kitty's protocol? and what is it?


def kitty(image: "Image", rows: int) -> bytes:
    """The commands that show `image` at the cursor, `rows` of text high."""
    data = base64.b64encode(_png(image))
    chunks = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    parts = [b"\x1b_Gm=%d;%s\x1b\\" % (i < len(chunks), chunk) for i, chunk in enumerate(chunks, 1)]
    parts[0] = parts[0].replace(b"\x1b_G", b"\x1b_Ga=T,f=100,q=2,r=%d," % rows, 1)
    return b"".join(parts)


def iterm2(image: "Image", rows: int) -> bytes:
    """The command that shows `image` at the cursor, `rows` of text high."""
    data = _png(image)
    settings = b"size=%d;inline=1;height=%d;preserveAspectRatio=1" % (len(data), rows)
    return b"\x1b]1337;File=%s:%s\x07" % (settings, base64.b64encode(data))


def sixel(image: "Image", _rows: int) -> bytes:
    """`image` in 256 colours as sixels, pixel by pixel: six rows a band, one line of it for each colour in it."""
    import numpy as np

    indexed = image.quantize(256)
    pixels = np.asarray(indexed)  # (H, W) palette indexes
    palette = np.asarray(indexed.getpalette(), np.uint8).reshape(-1, 3)
    out = [f'\x1bP0;1q"1;1;{image.width};{image.height}']
    percent = np.rint(palette / 2.55).astype(int)
    out += [f"#{i};2;{r};{g};{b}" for i, (r, g, b) in enumerate(percent)]
    for top in range(0, image.height, 6):
        band = pixels[top : top + 6]
        bits = 1 << np.arange(len(band))[:, None]
        lines = [f"#{color}" + _run_lengths(((band == color) * bits).sum(0)) for color in np.unique(band)]
        out.append("$".join(lines) + "-")
    return ("".join(out) + "\x1b\\").encode()


def _run_lengths(columns: "np.ndarray") -> str:
    runs = [(chr(63 + int(bits)), len(list(same))) for bits, same in groupby(columns)]
    return "".join(f"!{count}{sign}" if count > 3 else sign * count for sign, count in runs)


def _png(image: "Image") -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


Encoder = Callable[["Image", int], bytes]


class Terminal:
    """The terminal open at a file descriptor. Raises VlmkitError where it shows no pictures."""

    def __init__(self, descriptor: int) -> None:
        if not os.isatty(descriptor):
            raise VlmkitError("--preview is for a terminal", "leave it out, or use --html FILE")
        inside = "TMUX" in os.environ or "STY" in os.environ  # what these pass on is not for us to guess
        encode = (None if inside else _by_environment()) or _by_asking(descriptor)
        if encode is None:
            what = "this terminal shows no pictures"
            raise VlmkitError(what, "use one that knows the protocol of kitty, iTerm2 or sixel, or --html FILE")
        self._encode = encode
        self._columns, self._cell = _geometry(descriptor)

    def picture(self, path: object) -> bytes:
        """What shows the picture at `path`, at most 8 rows high and half as wide as the terminal, and ends the line."""
        width, height = self._cell
        try:
            image = thumbnail(path, width * max(1, self._columns // 2), height * ROWS)
        except PictureError as error:
            return f"({error})\n".encode(errors="backslashreplace")
        return self._encode(image, -(-image.height // height)) + b"\n"


def _geometry(terminal: int) -> tuple[int, tuple[int, int]]:
    """Columns, and the width and height of a character in pixels."""
    import fcntl
    import termios

    rows, columns, width, height = struct.unpack("4H", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))
    known = rows and columns and width >= columns and height >= rows
    return columns or 80, (width // columns, height // rows) if known else CELL


def _by_environment() -> Encoder | None:
    name = os.environ.get("TERM_PROGRAM", "")
    term = os.environ.get("TERM", "")
    if "KITTY_WINDOW_ID" in os.environ or term in ("xterm-kitty", "xterm-ghostty") or name == "ghostty":
        return kitty
    if name in ("iTerm.app", "WezTerm", "mintty") or os.environ.get("LC_TERMINAL") == "iTerm2":
        return iterm2
    return None


def _by_asking(terminal: int) -> Encoder | None:
    """Ask for kitty's protocol, and for the device attributes, which every terminal tells; 4 stands for sixel."""
    answer = _ask(terminal)
    attributes = re.search(rb"\x1b\[\?([\d;]*)c", answer)
    if b"\x1b_Gi=31;OK" in answer:
        return kitty
    return sixel if attributes and b"4" in attributes[1].split(b";")[1:] else None


def _ask(terminal: int) -> bytes:
    """What the terminal answers, up to the end of its device attributes; nothing where it keeps silent."""
    import termios
    import tty

    answer = b""
    with os.fdopen(os.open(os.ttyname(terminal), os.O_RDWR | os.O_NOCTTY), "r+b", buffering=0) as line:
        before = termios.tcgetattr(line)
        try:
            tty.setcbreak(line.fileno())
            line.write(ASK)
            end = time.monotonic() + ANSWER_SECONDS
            while not re.search(rb"\x1b\[\?[\d;]*c", answer):
                if not select.select([line], [], [], max(0.0, end - time.monotonic()))[0]:
                    break
                answer += line.read(1024)
        finally:
            termios.tcsetattr(line, termios.TCSADRAIN, before)
    return answer
