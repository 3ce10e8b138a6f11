"""The picture of the README: a search on a terminal, and below it the photographs that it found.

In the project's folder, with the extra `demo`, `python man/picture.py` makes it anew.
"""

import base64
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from html import escape
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

PICTURE = Path("man/search.svg")
COLUMNS = 60
LINES = (
    "vlmkit embed photos/ | vlmkit index",
    'vlmkit search "a motorcycle" -k 3',
)
HEIGHT = 150  # of a photograph, in units of the picture; a line of the terminal has 24.4
GAP = 12
FONT = re.compile(r" *@font-face \{.*?\}\n", re.DOTALL)  # of another host


def on_terminal(line: str, folder: Path) -> str:
    """What the shell line prints on a terminal, but for its notes, in a folder of `vlmkit demo --keep`."""
    own = {"VLMKIT_INDEX": "./demo.index", "TERM": "xterm-256color", "VLMKIT_CONFIG": os.devnull}
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    subprocess.run(
        ["bash", "-c", line], cwd=folder, env=os.environ | own, stdout=follower, stderr=subprocess.DEVNULL, check=True
    )
    os.close(follower)
    printed = b""
    try:
        while part := os.read(leader, 1 << 16):
            printed += part
    except OSError:  # the end, as Linux tells it
        pass
    os.close(leader)
    return printed.decode().replace("\r\n", "\n")


def thumbnail(path: Path) -> tuple[str, float]:
    """A photograph as the URL of a small JPEG, and its width at HEIGHT."""
    with Image.open(path) as photo:
        small = photo.convert("RGB")
    small.thumbnail((2 * HEIGHT, HEIGHT))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}", small.width * HEIGHT / small.height


def svg(folder: Path) -> str:
    """The picture, of the photographs and the index in a folder of `vlmkit demo --keep`."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    found = []
    for line in LINES:
        printed = on_terminal(line, folder)
        console.print(Text(f"$ {line}", style="bold"))
        console.print(Text.from_ansi(printed), end="")
        found += re.findall(r"photos/\S+\.(?:png|jpg)", Text.from_ansi(printed).plain)
    console.print("\n" * round(HEIGHT / 24.4 + 0.5))
    drawn = FONT.sub("", console.export_svg(title="", unique_id="search"))
    height = float(re.findall(r'viewBox="0 0 \S+ (\S+)"', drawn)[0])
    images, x = [], 10.0
    for name in found:
        url, width = thumbnail(folder / name)
        place = f'x="{x:g}" y="{height - HEIGHT - 24:g}" width="{width:.0f}" height="{HEIGHT}"'
        images.append(f'<image {place} href="{url}"><title>{escape(name)}</title></image>')
        x += width + GAP
    lines = drawn.replace("</svg>", "\n".join([*images, "</svg>"])).splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["vlmkit", "demo", "--keep", folder], check=True, stdout=subprocess.DEVNULL)
        PICTURE.write_text(svg(Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
