"""How quickly frames of a long film are read, against plain PyAV, and in how much memory.

    python tests/benchmarks/video.py [MINUTES] [--every SECONDS]

Makes a film of 720p at 25 frames a second, an hour unless MINUTES says otherwise: one minute is encoded, and its
packets written again and again. Each measurement runs in a process of its own, three times, in turn; the least
processor time of each is told. Plain PyAV decodes the whole film one frame after the other, with threads, and makes a
picture of those that are wanted; vlmkit's reader gives the same, as `embed --every` takes them.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 25
WIDTH, HEIGHT = 1280, 720
MINUTE = 60 * RATE
SCENES = 6  # a minute
SIDE = 224  # of the pictures that a model takes
ROUNDS = 3


def make_film(path: Path, minutes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        short = Path(folder, "minute.mp4")
        encode_minute(short)
        with av.open(str(short)) as source, av.open(str(path), "w") as film:
            stream = film.add_stream_from_template(source.streams.video[0])
            packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
            length = Fraction(60) / packets[0].time_base
            stamps = [(packet.pts, packet.dts) for packet in packets]
            for minute in range(minutes):
                for packet, (pts, dts) in zip(packets, stamps, strict=True):
                    packet.stream = stream
                    packet.pts, packet.dts = pts + int(minute * length), dts + int(minute * length)
                    packet.time_base = source.streams.video[0].time_base
                    film.mux(packet)


def encode_minute(path: Path) -> None:
    """Patterns that move, another one each ten seconds."""
    down, across = np.mgrid[:HEIGHT, :WIDTH]
    patterns = [((across * (n + 1) // 5 + down * (3 - n % 3) // 3) % 256).astype(np.uint8) for n in range(SCENES)]
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "28"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(MINUTE):
            light = np.roll(patterns[number * SCENES // MINUTE], 2 * number % WIDTH, 1)
            planes = np.concatenate([light, np.full((HEIGHT // 2, WIDTH), 128, np.uint8)])
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            film.mux(stream.encode(frame))
        film.mux(stream.encode())


def read_plainly(path: str, every: float) -> int:
    """The frames shown at multiples of `every` seconds, by PyAV alone."""
    count, before = 0, None
    with av.open(path) as film:
        stream = film.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in film.decode(stream):
            if before is not None and frame.time > count * every:
                before.to_image()
                count += 1
            before = frame
    return count


def read_by_vlmkit(path: str, every: float | None) -> int:
    from vlmkit.io.parts import Choice
    from vlmkit.io.sources import open_file
    from vlmkit.io.video.reader import VideoReader

    frames = VideoReader().chosen(open_file(path), Choice(every=every))
    return sum(1 for _, frame in frames if frame.image(SIDE))  # type: ignore[attr-defined]


def measure(what: str, path: str, every: float) -> None:
    begin = time.perf_counter()
    count = read_plainly(path, every) if what == "plain" else read_by_vlmkit(path, every if what == "every" else None)
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {"frames": count, "seconds": time.perf_counter() - begin}
    print(json.dumps(found | {"cpu": used.ru_utime + used.ru_stime, "megabytes": most_memory() >> 10}))


def most_memory() -> int:
    """KiB; what getrusage tells includes the memory of the process that started this one."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("minutes", type=int, nargs="?", default=60)
    parser.add_argument("--every", type=float, default=2.0)
    parser.add_argument("--measure", nargs=2)
    given = parser.parse_args()
    if given.measure:
        measure(*given.measure, given.every)
        return
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder, "film.mp4")
        make_film(film, given.minutes)
        print(f"{given.minutes} minutes of 720p, {film.stat().st_size >> 20} MB, a frame each {given.every:g} s")
        least: dict[str, dict[str, float]] = {}
        for _ in range(ROUNDS):
            for what in ("plain", "every", "scenes"):
                words = [sys.executable, __file__, "--every", str(given.every), "--measure", what, str(film)]
                found = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
                least[what] = min(least.get(what, found), found, key=lambda one: one["cpu"])
        for what, found in least.items():
            speed = 60 * RATE * given.minutes / found["cpu"]
            print(
                f"{what:7} {found['frames']:5} frames, {found['seconds']:6.1f} s, {found['cpu']:6.1f} s of processors, "
                f"{speed:6,.0f} frames of the film a second of them, {found['megabytes']} MB"
            )
        ratio = least["every"]["cpu"] / least["plain"]["cpu"]
        print(f"vlmkit takes {ratio:.2f} times as long as plain PyAV for the same frames")


if __name__ == "__main__":
    main()
