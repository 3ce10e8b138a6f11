"""--resume FILE: results are appended record by record, and those in FILE already are not computed again.

What was cut off at --max-tokens is computed again under a larger number, and the cut record then goes.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO

from vlmkit.errors import VlmkitError
from vlmkit.generate.questions import ChatSample
from vlmkit.generate.replies import is_cut
from vlmkit.io.files import append_lines, atomic_write
from vlmkit.io.pictures import FIELDS
from vlmkit.io.records import Failed, Record, dumps, loads
from vlmkit.io.terminal import Output, form_of

ASKED = "asked"  # the field for options that say what is asked, beside the question


class AppendOutput(Output):
    """FILE, opened to append records. An incomplete last line, left by a killed run, is removed.

    `max_tokens` is the limit of this run, `asked` what else was said to the model, if it is not the usual: records have
    it, and those made with other words are not done. Raises VlmkitError where FILE holds anything but records, or
    another run is writing it.
    """

    def __init__(self, path: str, max_tokens: int, asked: Record) -> None:
        self._max_tokens = max_tokens
        self._asked = {ASKED: asked} if asked else {}
        self._made: Counter[bytes] = Counter()
        self._cut: Counter[bytes] = Counter()  # under a smaller limit
        self._replaced: Counter[bytes] = Counter()  # of these, those that a later record of the same key follows
        super().__init__(path)

    def _opened(self, path: str | None) -> IO[bytes]:
        if os.path.exists(self.name) and not os.path.isfile(self.name):
            raise VlmkitError(f"{self.name} is not a regular file", "name a file that can be read again")
        try:
            return self._stack.enter_context(append_lines(self.name, self._note))
        except BlockingIOError:
            raise VlmkitError(f"another run writes {self.name}", "wait for it, or name another file") from None
        except ValueError as error:
            raise VlmkitError(str(error), "name a file that caption or ask wrote") from None
        except OSError as error:
            what = f"cannot write {self.name}: {error.strerror}"
            raise VlmkitError(what, "name a file that you can write to") from None

    def _note(self, line: bytes) -> None:
        try:
            record = loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError("is not a record")
        key, limit = _key(record), record.get("max_tokens")
        self._replace(key)
        stale = is_cut(record) and not (isinstance(limit, int) and limit >= self._max_tokens)
        (self._cut if stale else self._made)[key] += 1

    def _replace(self, key: bytes) -> None:
        if self._cut[key]:
            self._cut[key] -= 1
            self._replaced[key] += 1

    def write_records(self, records: Iterable[Record], form: str | None = None) -> None:
        for record in records:
            made = {key: value for key, value in record.items() if key != ASKED} | self._asked
            self.write(dumps(made))
            self._replace(_key(made))
        if self._replaced:
            self._drop_replaced()

    def _drop_replaced(self) -> None:
        """Write FILE again without the cut records that were replaced."""
        with open(self.name, "rb") as lines, atomic_write(self.name) as file:
            for line in lines:
                record = loads(line)
                if is_cut(record) and self._replaced[_key(record)]:
                    self._replaced[_key(record)] -= 1
                else:
                    file.write(line)

    def missing(self, items: Iterable[ChatSample | Failed]) -> Iterator[ChatSample | Failed]:
        """What FILE does not hold yet, by `id`, pictures and what was asked together; of equal ones as many as it
        lacks."""
        for item in items:
            if isinstance(item, Failed):
                yield item
                continue
            nameless = item.pictures and not any(item.record.get(name) for name in FIELDS)  # from standard input
            key = _key({key: value for key, value in item.record.items() if key != ASKED} | self._asked)
            if nameless or not self._made[key]:
                yield item
            else:
                self._made[key] -= 1


def _key(record: Record) -> bytes:
    """A hash of what tells records apart, so that a million of them fit in memory."""
    named = [record.get(name) for name in ("id", "question", *FIELDS, ASKED)]
    return hashlib.blake2b(repr(named).encode(errors="surrogatepass"), digest_size=16).digest()


def check_resume(resume: str, inputs: list[str], output: str | None, errors: str | None) -> None:
    """Raise VlmkitError where FILE is also an input or another output."""
    if output is not None:
        raise VlmkitError("--resume FILE is the output, so it excludes -o", "leave one of them out")
    if form_of(resume) != "jsonl":
        raise VlmkitError(f"{resume}: --resume appends lines, so its file is JSONL", "name a .jsonl file")
    if resume == "-":
        raise VlmkitError("--resume needs a file, not standard output", "name a file")
    here = os.path.realpath(resume)
    if errors is not None and os.path.realpath(errors) == here:
        raise VlmkitError(f"--resume and --errors are both {resume}", "name two files")
    piped = os.path.exists(resume) and os.path.samestat(os.stat(resume), os.fstat(0))
    if piped or here in map(os.path.realpath, inputs):
        raise VlmkitError(f"{resume} is an input, too", "name another file")
