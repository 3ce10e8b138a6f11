"""The line at the end of a run: what was read, written and left out; and the failures that were accepted before."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeVar

from vlmkit.errors import VlmkitError
from vlmkit.io.records import Failed, read_jsonl
from vlmkit.io.walk import LeftOut

T = TypeVar("T")


class Summary:
    """Counts of a run, and its duration. With `whole` all of them are told, else only what walks left out.

    `skipped` is what is said of items that were counted as read, but were not worked on, `target` where the others
    went.
    """

    def __init__(
        self, left_out: LeftOut | None = None, *, whole: bool = True, skipped: str = "skipped", target: str = ""
    ) -> None:
        self.left_out = left_out or LeftOut()
        self.counts: Counter[str] = Counter()  # by what was done, such as "pruned"
        self.whole, self._skipped, self._target = whole, skipped, target
        self.done = "written"  # what is said of items that went well
        self._read: int | None = None
        self._start = time.monotonic()

    def reading(self, items: Iterable[T]) -> Iterator[T]:
        """`items`, counted as read."""
        self._read = 0
        for item in items:
            self._read += 1
            yield item

    def line(self, seen: int, failed: int, accepted: int) -> str:
        """The line of a run that worked on `seen` items; empty where there is nothing to say."""
        parts = [self._numbers(seen, failed, accepted)] if self.whole else []
        if live := self.left_out.live:
            parts.append(f"{live} film{'s' * (live > 1)} of Live Photos, with their photos")
        if left_out := str(self.left_out):
            parts.append(f"not read: {left_out}: {self.left_out.remedy}")
        return "; ".join(parts)

    def _numbers(self, seen: int, failed: int, accepted: int) -> str:
        read = seen if self._read is None else self._read
        seconds = time.monotonic() - self._start
        rest = {"failed": failed, "known to fail": accepted, self._skipped: read - seen, **self.counts}
        rest["excluded"] = self.left_out.excluded
        done = [f"{read} read", f"{seen - failed - accepted} {self.done} {self._target}".rstrip()]
        done += [f"{count} {what}" for what, count in rest.items() if count]
        speed = seen / max(seconds, 1e-3)
        rate = f", {speed:.{0 if speed >= 10 else 1}f} a second" if seen else ""
        return f"{', '.join(done)} in {seconds:.1f} s{rate}"


class Accepted:
    """The failures in a list that `--errors` wrote, which are known: their files were bad when it was written."""

    def __init__(self, path: str) -> None:
        """Read the list. Raises VlmkitError."""
        self._known: set[tuple[str | None, str | None]] = set()
        try:
            with open(path, "rb") as lines:
                self._time = os.fstat(lines.fileno()).st_mtime_ns
                for row in read_jsonl(lines, path):
                    if isinstance(row, Failed):
                        raise VlmkitError(f"{row.id}: {row.error}", "give --ignore a file that --errors wrote")
                    self._known.add((row.get("id"), row.get("image")))
        except OSError as error:
            raise VlmkitError(f"{path}: {error.strerror}", "give --ignore a file that --errors wrote") from None

    def __contains__(self, failed: Failed) -> bool:
        """Whether this failure is in the list, and its file was not changed since."""
        return (failed.id, failed.image) in self._known and not self._is_newer(failed.image)

    def _is_newer(self, image: str | None) -> bool:
        """Whether the file of a picture, or the container that it is in, was changed after the list was written."""
        path = image or ""
        while path:
            try:
                found = os.stat(path)
                return max(found.st_mtime_ns, found.st_ctime_ns) > self._time
            except (OSError, ValueError):
                path = path[: max(path.rfind("/"), path.rfind("#"), 0)]
        return False
