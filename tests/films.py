"""Small films, made by PyAV: each frame of one colour, which tells its number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIZE = (96, 64)
SCALE = 1000  # of time stamps
ENDINGS = {"mp4": "libx264", "mov": "libx265", "mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4"}
ENDINGS |= {"mpg": "mpeg2video", "m2ts": "libx264"}
APPLE = {
    "creation_time": "2024-05-01T10:00:00Z",
    "com.apple.quicktime.creationdate": "2024-05-01T12:00:00+0200",
    "com.apple.quicktime.make": "Apple",
    "com.apple.quicktime.model": "iPhone 15",
    "com.apple.quicktime.location.ISO6709": "+48.1371+011.5753+519.0/",
}
TAGS = {"movflags": "use_metadata_tags"}


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The frame `number` (H x W x 3, uint8) by its colour; white at the top left shows how it is turned."""
    made = np.full((size[1], size[0], 3), (number * 37 % 200, number * 71 % 200, number * 13 % 200), np.uint8)
    made[: size[1] // 4, : size[0] // 4] = 255
    return made


@dataclass
class Made:
    """How a film is made: `scenes` are numbers of pictures, each shown for `length` frames, or at the `times` given."""

    scenes: Sequence[int] = (1, 2, 3)
    length: int = 25
    rate: int = 25
    gop: int = 12
    codec: str = "libx264"
    pixels: str = "yuv420p"
    size: tuple[int, int] = SIZE
    rotation: int = 0
    times: Sequence[float] | None = None
    options: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        with av.open(str(path), "w", options=self.container) as film:
            film.metadata.update(self.metadata)
            stream = film.add_stream(self.codec, rate=self.rate, options=self.options)
            stream.width, stream.height = self.size
            stream.pix_fmt = self.pixels
            stream.codec_context.gop_size = self.gop
            stream.codec_context.time_base = Fraction(1, SCALE) if self.times else Fraction(1, self.rate)
            if self.rotation:
                stream.set_display_rotation(self.rotation)
            shown = [number for number in self.scenes for _ in range(self.length)]
            for at, number in enumerate(shown):
                frame = av.VideoFrame.from_ndarray(picture(number, self.size), format="rgb24")
                frame.pts = round(self.times[at] * SCALE) if self.times else at
                frame.time_base = stream.codec_context.time_base
                film.mux(stream.encode(frame))
            film.mux(stream.encode())
        return path


def plainly(path: Path) -> list[tuple[Fraction, np.ndarray]]:
    """Time and picture of each frame, as PyAV decodes them one after the other."""
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        start = stream.start_time or 0
        return [
            ((frame.pts - start) * Fraction(stream.time_base), frame.to_ndarray(format="rgb24"))
            for frame in film.decode(stream)
        ]


def shown_at(frames: list[tuple[Fraction, np.ndarray]], time: float) -> np.ndarray:
    """The picture that is shown at a time: the last one that does not come after it."""
    return [picture for at, picture in frames if float(at) <= time][-1]


def make_sound(path: Path) -> None:
    """A file of sound alone."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        film.mux(stream.encode(frame))
        film.mux(stream.encode())


def make_films(folder: Path) -> None:
    """Films in every container, and awkward ones."""
    for ending, codec in ENDINGS.items():
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        Made(codec=codec, options=quiet).write(folder / f"plain.{ending}")
    Made(rotation=90).write(folder / "turned.mp4")
    Made(scenes=range(10), length=1, times=[0, 0.1, 0.15, 1, 1.01, 2.5, 5, 5.5, 9, 9.2]).write(folder / "uneven.mp4")
    Made(scenes=range(30), length=25, gop=1000, options={"sc_threshold": "0"}).write(folder / "no-keys.mkv")
    deep = {"x265-params": "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"}
    Made(codec="libx265", pixels="yuv420p10le", options=deep).write(folder / "hdr.mp4")
    Made(metadata=APPLE, container=TAGS).write(folder / "phone.mov")
