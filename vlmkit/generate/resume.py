"""--resume FILE: results are appended record by record, and what FILE holds already is not made again."""

import fcntl
import os
from collections.abc import Iterable, Iterator

from vlmkit.errors import VlmkitError
from vlmkit.generate.questions import ChatSample
from vlmkit.io.records import Failed, Record, loads
from vlmkit.io.terminal import Output


class AppendOutput(Output):
    """FILE, opened for more. A torn last line, of a run that was killed, is dropped.

    Raises VlmkitError where FILE holds anything but records, or another run is writing it.
    """

    def __init__(self, path: str) -> None:
        if os.path.exists(path) and not os.path.isfile(path):
            raise VlmkitError(f"{path} is no regular file", "name a file that can be read again")
        self.name = path
        self._target = self._temporary = None
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by __exit__)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VlmkitError(f"another run writes {path}", "wait for it, or name another file") from None
        except OSError as error:
            raise VlmkitError(f"cannot write {path}: {error.strerror}", "name a file that you can write to") from None
        self._made: set[tuple[str | None, str | None]] = set()
        self._read(path)

    def _read(self, path: str) -> None:
        whole = 0
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = loads(line)
                except ValueError:
                    if not line.endswith(b"\n") and (number > 1 or line.startswith(b"{")):
                        self._file.truncate(whole)
                        return
                    record = None
                if not isinstance(record, dict):
                    raise VlmkitError(f"{path}:{number} is no record", "name a file that caption or ask wrote")
                self._made.add(_key(record))
                whole += len(line)
        if whole and not line.endswith(b"\n"):
            self.write(b"\n")

    def missing(self, items: Iterable[ChatSample | Failed]) -> Iterator[ChatSample | Failed]:
        """What FILE does not hold yet: another `id`, or the same with another `question`."""
        for item in items:
            if isinstance(item, Failed):
                yield item
                continue
            key = _key(item.record)
            if key not in self._made and (key[0], None) not in self._made:
                self._made |= {key} if key[0] is not None else set()
                yield item


def _key(record: Record) -> tuple[str | None, str | None]:
    return record.get("id"), record.get("question")


def check_resume(resume: str, inputs: list[str], output: str | None, errors: str | None) -> None:
    """Raise VlmkitError where FILE is also read, or written otherwise."""
    if output is not None:
        raise VlmkitError("--resume FILE is the output, so it excludes -o", "leave one of them out")
    if resume == "-":
        raise VlmkitError("--resume - is no file to go on with", "name a file")
    here = os.path.realpath(resume)
    if errors is not None and os.path.realpath(errors) == here:
        raise VlmkitError(f"--resume and --errors are both {resume}", "name two files")
    piped = os.path.exists(resume) and os.path.samestat(os.stat(resume), os.fstat(0))
    if piped or here in map(os.path.realpath, inputs):
        raise VlmkitError(f"{resume} is an input, too", "name another file")
