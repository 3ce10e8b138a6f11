"""Which frames of a film are decoded: those shown at given times, or where the scene changes, and as few others as
that takes."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from vlmkit.io.video.film import Film

if TYPE_CHECKING:
    from av import Packet, VideoFrame

Frames = Iterator["tuple[Fraction, VideoFrame]"]

FAR = 20  # seconds ahead to which seeking is quicker than reading on
HELD = 1 << 26  # bytes of packets that wait until it is known whether they are needed
LONGEST = Fraction(10)  # seconds without a frame, where scenes are sought
BACK = (0, 5, 60)  # seconds before the wanted time to which is sought
GLANCE = Fraction(1, 2)  # seconds between frames that are looked at where key frames are rare
SHORTEST = Fraction(1, 2)  # seconds of a scene
CHANGE = 0.1  # mean difference of small copies, 1 between black and white, from which on it is another scene
SMALL = 32  # pixels of a side of such a copy
START = Fraction(0)


def grid(step: Fraction) -> Callable[[Fraction], Fraction | None]:
    """The first multiple of `step` from a time on."""
    return lambda time: max(-(-time // step), 0) * step


def listed(times: list[Fraction]) -> Callable[[Fraction], Fraction | None]:
    """The first of `times`, which ascend, from a time on."""
    from bisect import bisect_left

    return lambda time: times[at] if (at := bisect_left(times, time)) < len(times) else None


def frames_at(film: Film, wanted_from: Callable[[Fraction], Fraction | None], slack: Fraction = START) -> Frames:
    """The frames shown at wanted times, each with that time; a frame once, though it be shown at several.

    `wanted_from(time)` is the first wanted time from `time` on, None for no further one. The frame shown at a time is
    the last one that does not come after it, at the beginning the first one; the last one of all for `slack` seconds
    more.
    """
    if (wanted := wanted_from(START)) is None:
        return
    walk = _Walk(film, wanted)
    shown: tuple[Fraction, VideoFrame] | None = None
    for time, frame in walk.frames():
        if time <= wanted:
            shown = (time, frame) if shown is None or time >= shown[0] else shown
            continue
        if shown is None and walk.rewind():  # what was sought cannot be decoded from there
            continue
        yield wanted, shown[1] if shown else frame
        before, shown = shown, (time, frame)
        wanted = wanted_from(time) if before else wanted_from(max(time, wanted) + film.base)
        if wanted is None:
            return
        if walk.go_on(wanted):
            shown = None
    if shown is not None and wanted < shown[0] + _length(film, shown[1]) + slack:
        yield wanted, shown[1]


def _length(film: Film, frame: "VideoFrame") -> Fraction:
    """How long the last frame of a film is shown."""
    rate = film.stream.average_rate
    return max((frame.duration or 0) * film.base, 1 / Fraction(rate) if rate else START)


class _Walk:
    """The frames of a film, of which those before the time that is `wanted` are left out where they are not needed.

    Packets wait until one comes that is shown after that time; where a key frame comes before it, those that wait are
    not needed.
    """

    def __init__(self, film: Film, wanted: Fraction) -> None:
        self._film, self._wanted, self._last = film, wanted, START
        self._packets = film.packets()
        self._waiting: list[Packet] = []
        self._bytes = 0
        self._is_gap = False  # what waits does not follow what was decoded
        self._is_sought = False  # whether the way did not begin at the beginning
        self._jumps = 0
        self._seeks = True
        self.go_on(wanted)

    def frames(self) -> Frames:
        while True:
            jumps = self._jumps
            found = next(self._packets, None)
            for packet in self._needed(found):
                for one in self._film.decode(packet):
                    yield one
                    if jumps != self._jumps:  # the others are of where we were
                        break
                if jumps != self._jumps:
                    break
            if found is None and jumps == self._jumps:
                return

    def _needed(self, found: "tuple[Fraction, Packet] | None") -> "list[Packet | None]":
        """The packets to decode now that this one has come; None at the end stands for what the decoder holds back."""
        if found is not None:
            self._last, packet = found
            if packet.is_keyframe and self._last <= self._wanted:
                self._is_gap = self._is_gap or bool(self._waiting)
                self._waiting, self._bytes = [], 0
            self._waiting.append(packet)
            self._bytes += packet.size
            if self._last <= self._wanted and self._bytes < HELD:
                return []
        if self._is_gap:
            self._film.stream.codec_context.flush_buffers()
        needed: list[Packet | None] = [*self._waiting]
        self._waiting, self._bytes, self._is_gap = [], 0, False
        return needed if found else [*needed, None]

    def go_on(self, wanted: Fraction) -> bool:
        """Set the time that is wanted; whether it is so far that the film was sought through."""
        self._wanted = wanted
        if not self._seeks or wanted - self._last < FAR:
            return False
        if any(self._seek(wanted - back) for back in BACK):
            return True
        self._seeks = False
        return self._from_beginning()

    def rewind(self) -> bool:
        """Begin at the beginning, unless that is where the way began."""
        self._seeks = False
        return self._is_sought and self._from_beginning()

    def _from_beginning(self) -> bool:
        self._film.rewind()
        self._packets, self._waiting, self._bytes = self._film.packets(), [], 0
        self._jumps += 1
        self._last, self._is_gap, self._is_sought = START, False, False
        return True

    def _seek(self, before: Fraction) -> bool:
        """Go to the last key frame before a time; False where that leads past what is wanted."""
        from av.error import FFmpegError

        self._jumps += 1
        try:
            self._film.seek(before)
        except (FFmpegError, OSError, OverflowError):
            return False
        self._packets = self._film.packets()
        for time, packet in self._packets:
            self._last = time
            if packet.is_keyframe:
                self._waiting, self._bytes = [packet], packet.size
                self._is_gap, self._is_sought = True, True
                return self._last <= self._wanted
        return False


def scenes(film: Film) -> Frames:
    """The first frame, one of each scene, and where nothing changes one in LONGEST seconds."""
    import numpy as np

    at, copy = START, None
    passed = None  # the frame before, if it was passed over
    for time, frame in _glances(film):
        small = frame.reformat(SMALL, SMALL, "rgb24").to_ndarray().astype(np.int16)
        if passed and time - at > LONGEST:
            at, copy = passed[0], passed[2]
            yield passed[:2]
        passed = time, frame, small
        if copy is None or (time - at >= SHORTEST and np.abs(small - copy).mean() > CHANGE * 255):
            at, copy, passed = time, small, None
            yield time, frame
    if passed and film.end - at > LONGEST:
        yield passed[:2]


def _glances(film: Film) -> Frames:
    """The frames that are looked at: key frames, and where they are further apart than LONGEST one each GLANCE."""
    begin, last, size = START, START - GLANCE, 0
    waiting: list[Packet] = []  # since the last key frame
    all_decoded = False  # of this group, and nothing waits
    for time, packet in film.packets():
        found = []
        if packet.is_keyframe:
            found = _key_frame(film, waiting)
            begin, size, waiting, all_decoded = time, packet.size, [packet], False
        elif all_decoded:
            found = film.decode(packet)
        else:
            waiting.append(packet)
            size += packet.size
            if time - begin > LONGEST or size > HELD:
                found = [one for each in waiting for one in film.decode(each)]
                waiting, all_decoded = [], True
        for one in found:
            if one[1].key_frame or one[0] - last >= GLANCE:
                last = one[0]
                yield one
    yield from _key_frame(film, waiting)


def _key_frame(film: Film, packets: "list[Packet]") -> "list[tuple[Fraction, VideoFrame]]":
    """The first frame of a group, or all where that cannot be decoded alone; before it those still held back."""
    found = film.decode(None)
    film.stream.codec_context.flush_buffers()
    for some in (packets[:1], packets):
        alone = [one for packet in [*some, None] for one in film.decode(packet)]
        film.stream.codec_context.flush_buffers()
        if alone:
            return found + alone
    return found


def measured(film: Film) -> Fraction:
    """How long a film is whose header does not say so; goes back to its beginning."""
    end = max((time for time, _ in film.packets()), default=START)
    film.rewind()
    return end
