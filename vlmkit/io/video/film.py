"""A film that is open: its packets, their times, and what the container says of where and when it was made.

FFmpeg gets the bytes of this one file alone, and may neither open other files nor URLs, whatever stands in it.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vlmkit.io.images import max_pixels
from vlmkit.io.records import Record
from vlmkit.io.sources import SMALLEST, NoPictures, PictureError, Source

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer

# FFmpeg's names of what holds films; those that lead to other files, such as playlists, are not among them.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,asf,flv,mxf,ogg"
LARGEST = 1 << 26  # pixels of a frame, two of 8K: a decoder holds many of them
BUFFER = 1 << 18  # bytes that are read at a time
SHORTFALL = Fraction(1, 2)  # seconds that a complete film may be shorter than its header says
EXACT = ("mov,", "matroska,")  # how the names of formats begin whose headers know the duration; others guess
BACKWARDS = 1  # seconds by which packets in the order of decoding may go back
MICROSECOND = Fraction(1, 1_000_000)
FIRST_YEAR = 1980  # cameras without a clock say 1904 or 1970
ISO6709 = re.compile(r"([+-]\d{1,2}(?:\.\d+)?)([+-]\d{1,3}(?:\.\d+)?)")  # degrees with decimals, as phones write them
CONTENT_ID = "com.apple.quicktime.content.identifier"


class Film:
    """An open film. Raises PictureError unless there are moving pictures in it.

    Times are seconds from the first frame on; `end` is that of the last packet that was read. `damage` says what could
    not be read, once it was found.
    """

    def __init__(self, file: Source) -> None:
        if not file.size:
            raise PictureError("the file is empty")
        if file.size < SMALLEST and file.read()[4:8] == b"ftyp":
            raise NoPictures("the file ends behind its header")
        self._file = file
        self._start()

    def _start(self) -> None:
        import av

        self.damage: list[str] = []
        self.end = Fraction(0)
        self._bad_frames = 0
        limits = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        with film_errors():
            self._bytes = _Bytes(self._file)
            try:
                self.container: InputContainer = av.open(
                    self._bytes, "r", container_options=limits, metadata_errors="replace", buffer_size=BUFFER
                )
            except BaseException:
                self._bytes.close()
                raise
        try:
            with film_errors():
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        from av.stream import Disposition

        streams = self.container.streams.video
        films = [one for one in streams if not one.disposition & Disposition.attached_pic]
        if not films:
            raise NoPictures("there is no film in it, but a cover picture" if streams else "sound without a picture")
        best = self.container.streams.best("video")
        self.stream = best if best in films else films[0]
        context = self.stream.codec_context
        if context is None:
            raise PictureError("its codec is not known")
        self.limit = min(max_pixels(), LARGEST)
        if (size := context.width * context.height) > self.limit:
            raise PictureError(f"too many pixels: {context.width:,} x {context.height:,}; the limit is {self.limit:,}")
        context.options = {"max_pixels": str(self.limit)} if size else {}  # frames may grow on the way
        context.thread_type = "AUTO"
        self.base = Fraction(self.stream.time_base or 0) or MICROSECOND
        self.start = (self.stream.start_time or 0) * self.base

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.container.close()
        self._bytes.close()

    def time(self, stamp: int) -> Fraction:
        return stamp * self.base - self.start

    @property
    def shape(self) -> Fraction:
        """Of its pixels, width to height."""
        return Fraction(self.stream.sample_aspect_ratio or 1)

    @property
    def duration(self) -> Fraction | None:
        """As the header says."""
        if self.stream.duration:
            return self.stream.duration * self.base
        clock = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", self.stream.metadata.get("DURATION", ""))
        if clock:
            return 3600 * int(clock[1]) + 60 * int(clock[2]) + Fraction(clock[3])
        length = self.container.duration
        return length * MICROSECOND if length and length > 0 else None

    def packets(self) -> Iterator["tuple[Fraction, Packet]"]:
        """The packets of the film with their times, from here to its end; then `damage` says whether it is whole."""
        last = decoded = self.end = Fraction(0)
        highest = Fraction(-BACKWARDS)
        try:
            for packet in self.container.demux():
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is not None and packet.time_base:
                    self.end = max(self.end, (stamp + (packet.duration or 0)) * packet.time_base - self.start)
                if packet.stream is self.stream and packet.size:
                    self._bad_frames += packet.is_corrupt
                    last = last if stamp is None else self.time(stamp)
                    decoded = decoded if packet.dts is None else self.time(packet.dts)
                    highest = max(highest, decoded)
                    if highest - decoded > BACKWARDS and not self.damage:
                        self.damage.append(f"its times go back after {clock_of(self.end)}, where another may begin")
                    yield last, packet
        except Exception as error:
            self.damage.append(f"it breaks off after {clock_of(self.end)} ({_reason(error)})")
            return
        whole = (self.container.duration or 0) * MICROSECOND
        guessed = 0 if self.container.format.name.startswith(EXACT) else whole / 50
        if whole - self.end > max(SHORTFALL, guessed):
            self.damage.append(f"it breaks off after {clock_of(self.end)} of {clock_of(whole)}")

    def decode(self, packet: "Packet | None") -> list["tuple[Fraction, VideoFrame]"]:
        """The frames, with their times, that come with this packet; with None those that were still held back."""
        from av.error import EOFError, FFmpegError

        try:
            frames = self.stream.codec_context.decode(packet)
        except EOFError:
            return []
        except FFmpegError:
            self._bad_frames += 1
            return []
        found = []
        for frame in frames:
            stamp = frame.pts if frame.pts is not None else frame.dts
            if frame.is_corrupt:
                self._bad_frames += 1
            elif stamp is not None and frame.width * frame.height <= self.limit:
                found.append((self.time(stamp), frame))
        return found

    def check(self) -> None:
        """Raise PictureError where `damage` was found, or packets that could not be decoded."""
        damage = list(self.damage)
        if self._bad_frames:
            damage.append(f"{self._bad_frames:,} of its frames cannot be decoded")
        if damage:
            raise PictureError(f"the film is damaged: {' and '.join(damage)}; its other frames were read")

    def rewind(self) -> None:
        """To the beginning, which no seeking is needed for. Raises PictureError."""
        self.close()
        self._start()

    def seek(self, time: Fraction) -> None:
        """To a key frame before `time`, if the index of the film is right. Raises FFmpegError."""
        self.container.seek(int((max(time, Fraction(0)) + self.start) / self.base), stream=self.stream)
        self.stream.codec_context.flush_buffers()

    def facts(self) -> Record:
        """`camera`, `lat` and `lon` as far as they are known."""
        metadata = {key.lower(): value for key, value in self.container.metadata.items()}
        apple = "com.apple.quicktime."
        maker, model = (metadata.get(apple + key) or metadata.get(key) or "" for key in ("make", "model"))
        model = model.strip() if model.startswith(maker.strip()) else f"{maker.strip()} {model.strip()}".strip()
        found: Record = {"camera": model} if model else {}
        place = ISO6709.match(metadata.get(apple + "location.iso6709") or metadata.get("location") or "")
        if place and abs(float(place[1])) <= 90 and abs(float(place[2])) <= 180:
            found |= {"lat": float(place[1]), "lon": float(place[2])}
        return found

    @property
    def is_live(self) -> bool:
        """Whether it says that it is of a Live Photo."""
        return CONTENT_ID in self.container.metadata

    def taken(self) -> datetime | None:
        """When its first frame was taken, as the clocks there showed it; where it says UTC alone, as ours do."""
        metadata = self.container.metadata
        local = metadata.get("com.apple.quicktime.creationdate")
        for text in filter(None, (local, metadata.get("creation_time"), metadata.get("DATE"))):
            try:
                found = datetime.fromisoformat(text)
                if found.tzinfo and text is not local:
                    found = found.astimezone()
                if found.year >= FIRST_YEAR:
                    return found.replace(tzinfo=None)
            except (ValueError, OverflowError):
                continue
        return None


def at_time(taken: datetime | None, time: float) -> Record:
    """`taken` of the frame at `time` of a film that was begun at `taken`."""
    try:
        return {"taken": (taken + timedelta(seconds=time)).isoformat(timespec="seconds")} if taken else {}
    except OverflowError:
        return {}


def clock_of(time: float | Fraction) -> str:
    """Seconds as a clock shows them: 0:12.5, 1:02:03."""
    minutes, seconds = divmod(round(float(time), 3), 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{seconds:06.3f}".rstrip("0").rstrip(".")
    return f"{hours}:{minutes:02}:{text}" if hours else f"{minutes}:{text}"


@contextmanager
def film_errors() -> Iterator[None]:
    """Turns errors of FFmpeg and of the file in the block into PictureError."""
    from av.error import FFmpegError

    try:
        yield
    except PictureError:
        raise
    except MemoryError:
        raise PictureError("not enough memory to decode it") from None
    except FFmpegError as error:
        raise PictureError(f"not a film that can be read, or not all of it is there ({_reason(error)})") from None
    except OSError as error:
        raise PictureError(error.strerror or str(error)) from None
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:  # of damaged headers
        raise PictureError(f"not a film that can be read ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


class _Bytes(io.RawIOBase):
    """The bytes of a source for FFmpeg."""

    name = ""  # FFmpeg is to judge by content alone

    def __init__(self, file: Source) -> None:
        self._file, self._at = file, 0
        self._descriptor = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._file.size - self._at))
        count = os.preadv(self._descriptor, [memoryview(buffer)[:length]], self._file.offset + self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
