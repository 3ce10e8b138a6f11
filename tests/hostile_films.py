"""Films that are to crash, hang or lead astray whoever opens them, made from good ones."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

from films import Made


def hostile_films(folder: Path) -> Iterator[Path]:
    good = Made(scenes=range(6), length=10).write(folder / "good.mp4").read_bytes()
    vast = Made(scenes=[1], length=1, size=(8208, 8192), codec="mjpeg", pixels="yuvj420p").write(folder / "vast.avi")
    yield vast
    grown = bytearray(good)
    for name, size in (("flipped.mp4", 300), ("shredded.mp4", 5)):
        dice, data = random.Random(size), bytearray(good)
        for _ in range(len(data) // size):
            data[dice.randrange(48, len(data))] = dice.randrange(256)
        yield _written(folder / name, bytes(data))
    at = grown.index(b"mvhd") + 16
    grown[at : at + 8] = struct.pack(">II", 1, 0xFFFFFFFF)  # one tick a second, 136 years
    yield _written(folder / "eternal.mp4", bytes(grown))
    slow = bytearray(good)
    at = slow.index(b"mdhd") + 16
    slow[at : at + 4] = struct.pack(">I", 1)  # a frame lasts hours
    yield _written(folder / "slow.mp4", bytes(slow))
    counted = bytearray(good)
    at = counted.index(b"stsz") + 8
    counted[at + 4 : at + 8] = struct.pack(">I", 0x7FFFFFFF)  # samples in the table
    yield _written(folder / "samples.mp4", bytes(counted))
    stamped = bytearray(good)
    at = stamped.index(b"stts") + 12
    stamped[at : at + 4] = struct.pack(">I", 0xFFFFFFF0)
    yield _written(folder / "stamps.mp4", bytes(stamped))
    yield _written(folder / "box.mp4", good[:32] + struct.pack(">I4sQ", 1, b"moov", 1 << 62) + good[32:])
    nested = b""
    for _ in range(5000):
        nested = struct.pack(">I4s", 8 + len(nested), b"moov") + nested
    yield _written(folder / "nested.mp4", good[:32] + nested)
    yield _written(folder / "noise.mkv", b"\x1aE\xdf\xa3" + random.Random(1).randbytes(1 << 20))
    yield _written(folder / "zeros.mpg", bytes(8 << 20))
    yield _written(folder / "list.m4v", b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    yield _written(folder / "twice.mp4", good + good)
    yield _written(folder / "jumps.m2ts", _stream(folder) * 3)


def _stream(folder: Path) -> bytes:
    return Made(scenes=range(3), length=20).write(folder / "part.m2ts").read_bytes()


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
