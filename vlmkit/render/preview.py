"""Pictures in a terminal, by the protocols of kitty, iTerm2 and sixel, else of half blocks in colours.

Written from their specifications: https://sw.kovidgoyal.net/kitty/graphics-protocol/,
https://iterm2.com/documentation-images.html, https://vt100.net/docs/vt3xx-gp/chapter14.html. chafa.py 1.2 (LGPL, a 2 MB
library, last released in September 2024) sends iTerm2 raw pixels: 120 kB for 200 x 100 pixels.
"""

import base64
import io
import os
import re
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
CELL = (8, 16)  # pixels of a character, where the terminal does not say
HALVES = (1, 2)  # of one that is half filled, of which a picture has more rows
BLOCK_ROWS = 12
ANSWER_SECONDS = 2.0
CHUNK = 4096  # the most that kitty takes in one command
KITTY_QUERY = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"  # asks for kitty's protocol; tmux takes it as a title
QUERY = b"\x1b[c"  # asks for the terminal's type
ATTRIBUTES = rb"\x1b\[\?([\d;]*)c"  # how every terminal answers the second question; 4 stands for sixel

Encoder = Callable[["Image", int], bytes]


def kitty(image: "Image", rows: int) -> bytes:
    """The commands that show `image` at the cursor, `rows` of text high."""
    data = base64.b64encode(_png(image))
    chunks = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    settings = [b"a=T,f=100,q=2,r=%d," % rows] + [b""] * len(chunks)
    parts = zip(settings, chunks, strict=False)
    return b"".join(b"\x1b_G%sm=%d;%s\x1b\\" % (s, i < len(chunks), c) for i, (s, c) in enumerate(parts, 1))


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
    percent = np.rint(np.asarray(indexed.getpalette(), np.uint8).reshape(-1, 3) / 2.55).astype(int)
    out = [
        f'\x1bP0;1q"1;1;{image.width};{image.height}',
        *(f"#{i};2;{r};{g};{b}" for i, (r, g, b) in enumerate(percent)),
    ]
    for top in range(0, image.height, 6):
        band = pixels[top : top + 6]
        bits = 1 << np.arange(len(band))[:, None]
        lines = [f"#{color}" + _run_lengths(((band == color) * bits).sum(0)) for color in np.unique(band)]
        out.append("$".join(lines) + "-")
    return ("".join(out) + "\x1b\\").encode()


def half_blocks(image: "Image", _rows: int) -> bytes:
    """`image` in characters that are half filled, two pixels each, in 24-bit colours or the 256 of xterm."""
    import numpy as np

    pixels = np.asarray(image)  # (H, W, 3)
    pixels = np.pad(pixels, ((0, len(pixels) % 2), (0, 0), (0, 0)))
    color = _true_color if os.environ.get("COLORTERM") in ("truecolor", "24bit") else _xterm_color
    lines = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = (f"\x1b[38;{color(*a)};48;{color(*b)}m▀" for a, b in zip(upper, lower, strict=True))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines).encode()


def _true_color(red: int, green: int, blue: int) -> str:
    return f"2;{red};{green};{blue}"


def _xterm_color(*channels: int) -> str:
    """The nearest of the 6 x 6 x 6 colours that begin at 16; their levels are 0, 95, 135, 175, 215 and 255."""
    red, green, blue = (round(max(0, channel - 55) / 40) if channel >= 48 else 0 for channel in channels)
    return f"5;{16 + 36 * red + 6 * green + blue}"


def _run_lengths(columns: "np.ndarray") -> str:
    runs = [(chr(63 + int(bits)), len(list(same))) for bits, same in groupby(columns)]
    return "".join(f"!{count}{sign}" if count > 3 else sign * count for sign, count in runs)


def _png(image: "Image") -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


class Terminal:
    """The terminal open at a file descriptor. Raises VlmkitError where it shows neither pictures nor colours."""

    def __init__(self, descriptor: int) -> None:
        import fcntl
        import termios

        if not os.isatty(descriptor):
            raise VlmkitError("--preview requires a terminal", "leave it out, or use --html FILE")
        if os.environ.get("TERM", "dumb") == "dumb":
            raise VlmkitError("this terminal shows no pictures", "use another one, or --html FILE")
        self._encode = _encoder_of_environment() or _encoder_of_answer(_query(descriptor)) or half_blocks
        rows, columns, width, height = struct.unpack("4H", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8)))
        known = rows and columns and width >= columns and height >= rows
        self._cell = (width // columns, height // rows) if known else CELL
        self._rows = ROWS
        if self._encode is half_blocks:
            self._cell, self._rows = HALVES, BLOCK_ROWS
        self._columns = columns or 80

    def picture(self, path: object) -> bytes:
        """What shows the picture at `path` and ends the line: at most 8 rows (of blocks 12) and half the width."""
        width, height = self._cell
        try:
            image = thumbnail(path, width * max(1, self._columns // 2), height * self._rows)
        except PictureError as error:
            return f"({error})\n".encode(errors="backslashreplace")
        return self._encode(image, -(-image.height // height)) + b"\n"


def _encoder_of_environment() -> Encoder | None:
    name, term = os.environ.get("TERM_PROGRAM", ""), os.environ.get("TERM", "")
    if _in_multiplexer():
        return None  # only an answer says what it passes on
    if "KITTY_WINDOW_ID" in os.environ or term in ("xterm-kitty", "xterm-ghostty") or name == "ghostty":
        return kitty
    if name in ("iTerm.app", "WezTerm", "mintty") or os.environ.get("LC_TERMINAL") == "iTerm2":
        return iterm2
    return None


def _in_multiplexer() -> bool:
    return "TMUX" in os.environ or "STY" in os.environ or os.environ.get("TERM", "").startswith(("tmux", "screen"))


def _encoder_of_answer(answer: bytes) -> Encoder | None:
    if b"\x1b_Gi=31;OK" in answer:
        return kitty
    attributes = re.search(ATTRIBUTES, answer)
    return sixel if attributes and b"4" in attributes[1].split(b";")[1:] else None


def _query(descriptor: int) -> bytes:
    """The terminal's answer to the queries, up to the end of its attributes; empty if it does not answer."""
    import select
    import termios
    import tty

    answer, end = b"", time.monotonic() + ANSWER_SECONDS
    with os.fdopen(os.open(os.ttyname(descriptor), os.O_RDWR | os.O_NOCTTY), "r+b", buffering=0) as line:
        before = termios.tcgetattr(line)
        try:
            tty.setcbreak(line.fileno())
            line.write(QUERY if _in_multiplexer() else KITTY_QUERY + QUERY)
            while not re.search(ATTRIBUTES, answer):
                if not select.select([line], [], [], max(0.0, end - time.monotonic()))[0]:
                    break
                answer += line.read(1024)
        finally:
            termios.tcsetattr(line, termios.TCSADRAIN, before)
    return answer
