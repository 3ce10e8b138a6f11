"""--preview on a terminal of each kind: the protocol's bytes, decoded, are the picture."""

import base64
import io
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import embedded, jsonl
from PIL import Image

KITTY = {"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}
ITERM2 = {"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}
PLAIN = {"TERM": "xterm-256color"}
KNOWN = ("TERM", "TERM_PROGRAM", "KITTY_WINDOW_ID", "LC_TERMINAL", "TMUX", "STY")


@pytest.fixture
def gradient(vlmkit, tmp_path: Path) -> Path:
    """An indexed picture of 200 x 100 pixels in which every corner differs."""
    y, x = np.mgrid[:100, :200]
    pixels = np.stack([x, 2 * y, 255 - x], axis=2).astype(np.uint8)
    path = tmp_path / "a\ngradient.png"
    Image.fromarray(pixels).save(path)
    vlmkit("index", stdin=jsonl(embedded(str(path), [1, 0]), embedded("/gone.png", [0, 1]), embedded("q", [1, 0.1])))
    return path


def shown(arguments: list[str], environment: dict[str, str], answer: bytes = b"") -> tuple[int, bytes, bytes]:
    """Exit code, what the terminal got (it answers a question for its attributes with `answer`), standard error."""
    master, slave = pty.openpty()
    command = ["vlmkit", "search", "--like", "q", *arguments]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=subprocess.PIPE, env=environment) as process:
        os.close(slave)
        got, end = b"", time.monotonic() + 60
        while time.monotonic() < end:
            if not select.select([master], [], [], 0.1)[0]:
                if process.poll() is not None:
                    break
                continue
            try:
                more = os.read(master, 1 << 16)
            except OSError:  # the other end was closed
                break
            if b"\x1b[c" in more and answer:
                os.write(master, answer)
            got += more
        errors = process.stderr.read()
    os.close(master)
    return process.returncode, got, errors


def same(image: Image.Image, path: Path, tolerance: float) -> None:
    with Image.open(path) as original:
        expected = original.convert("RGB").resize(image.size)
    difference = np.abs(np.asarray(image.convert("RGB"), float) - np.asarray(expected, float))
    assert difference.mean() < tolerance
    assert image.size == (200, 100)


def from_kitty(data: bytes) -> Image.Image:
    commands = re.findall(rb"\x1b_G([^;]*);([^\x1b]*)\x1b\\", data)
    commands = [(keys, chunk) for keys, chunk in commands if b"a=q" not in keys]  # the question of a terminal unknown
    settings = dict(pair.split(b"=") for pair in commands[0][0].split(b","))
    assert (settings[b"a"], settings[b"f"], settings[b"r"]) == (b"T", b"100", b"7")
    assert all(len(chunk) <= 4096 for _, chunk in commands)
    assert [b"m=1" in keys for keys, _ in commands] == [True] * (len(commands) - 1) + [False]
    return Image.open(io.BytesIO(base64.b64decode(b"".join(chunk for _, chunk in commands))))


def from_iterm2(data: bytes) -> Image.Image:
    settings, content = re.search(rb"\x1b\]1337;File=([^:]*):([^\x07]*)\x07", data).groups()
    decoded = base64.b64decode(content)
    assert b"inline=1" in settings and b"height=7" in settings and b"size=%d;" % len(decoded) in settings
    return Image.open(io.BytesIO(decoded))


def from_sixel(data: bytes) -> Image.Image:
    """A decoder of its own, after the VT330 manual."""
    body = re.search(rb'\x1bP0;1q"1;1;(\d+);(\d+)(.*?)\x1b\\', data, re.DOTALL)
    width, height = int(body[1]), int(body[2])
    pixels = np.zeros((height + 6, width, 3), np.uint8)
    colors: dict[int, np.ndarray] = {}
    x = y = 0
    for token in re.findall(rb"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|(\$)|(-)", body[3]):
        number, *rgb, count, repeated, single, _back, down = token
        if number and rgb[0]:
            colors[int(number)] = np.rint(np.array(rgb, float) * 2.55).astype(np.uint8)
        elif number:
            color = colors[int(number)]
        elif repeated or single:
            for bit in range(6):
                if (repeated or single)[0] - 63 >> bit & 1:
                    pixels[y + bit, x : x + int(count or 1)] = color
            x += int(count or 1)
        else:
            x, y = 0, y + 6 * bool(down)
    return Image.fromarray(pixels[:height])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("terminal", "answer", "decode", "tolerance"),
    [
        (KITTY, b"", from_kitty, 0.1),
        (PLAIN, b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c", from_kitty, 0.1),
        (ITERM2, b"", from_iterm2, 0.1),
        (PLAIN, b"\x1b[?62;4;22c", from_sixel, 12),
        (KITTY | {"TMUX": "/tmp/tmux"}, b"\x1b[?1;2;4c", from_sixel, 12),
    ],
    ids=["kitty", "kitty that is asked", "iterm2", "sixel", "sixel inside tmux"],
)
def test_the_picture_arrives(gradient: Path, environment, terminal, answer, decode, tolerance) -> None:
    own = {k: v for k, v in environment.items() if k not in KNOWN} | terminal
    code, got, errors = shown(["--preview"], own, answer)
    assert (code, errors) == (0, b"")
    same(decode(got), gradient, tolerance)
    text = re.sub(rb"\x1b[_P\]].*?(\x1b\\|\x07)", b"", got, flags=re.DOTALL).decode()
    assert re.search(r"1  0\.99\d  \S+/a\\ngradient\.png\r\n", text)
    assert re.search(r"2  0\.\d\d\d  /gone\.png\r\n\(no such file\)\r\n", text)


def from_half_blocks(data: bytes) -> Image.Image:
    """Two pixels a character, by the colours set before it."""
    cells = [
        [(int(code) for code in colors.split(b";")) for colors in re.findall(rb"\x1b\[([\d;]+)m\xe2\x96\x80", line)]
        for line in data.split(b"\r\n")
    ]
    halves = [[(rgb[2:5], rgb[7:10]) for rgb in map(list, row)] for row in cells if row]
    return Image.fromarray(np.array([[pair[i] for pair in row] for row in halves for i in (0, 1)], np.uint8))


@pytest.mark.parametrize(
    "terminal",
    [PLAIN, KITTY | {"TMUX": "/tmp/tmux"}, ITERM2 | {"TERM": "tmux-256color"}, KITTY | {"TERM": "screen"}],
    ids=["no protocol", "tmux", "tmux by its name", "screen by its name"],
)
def test_half_blocks_where_nothing_else_is_sure(gradient: Path, environment, terminal) -> None:
    own = {k: v for k, v in environment.items() if k not in KNOWN} | terminal | {"COLORTERM": "truecolor"}
    code, got, errors = shown(["--preview"], own, b"\x1b[?1;2c")
    assert (code, errors) == (0, b"") and b"1337" not in got
    assert (b"\x1b_G" in got) == (terminal is PLAIN), "a multiplexer takes it as a title"
    image = from_half_blocks(got)
    assert image.size == (40, 20)
    with Image.open(gradient) as original:
        expected = np.asarray(original.resize(image.size), float)
    assert np.abs(np.asarray(image, float) - expected).mean() < 6


def test_256_colors_and_none(gradient: Path, environment) -> None:
    own = {k: v for k, v in environment.items() if k not in (*KNOWN, "COLORTERM")}
    code, got, _ = shown(["--preview"], own | PLAIN, b"\x1b[?1;2c")
    assert code == 0 and re.search(rb"\x1b\[38;5;\d+;48;5;\d+m\xe2\x96\x80", got) and b"38;2;" not in got
    code, got, errors = shown(["--preview"], own | {"TERM": "dumb"})
    assert code == 2 and errors.count(b"\n") == 1 and b"shows no pictures" in errors and b"gradient" not in got


def test_no_style_where_no_color_is_set(gradient: Path, environment) -> None:
    own = {k: v for k, v in environment.items() if k not in KNOWN} | PLAIN
    assert b"\x1b[1m" in shown([], own)[1]
    assert b"\x1b" not in shown([], own | {"NO_COLOR": "1"})[1]
