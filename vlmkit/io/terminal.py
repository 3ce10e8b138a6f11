"""The only file that touches standard input, output and error: atomic files, failures, progress."""

import contextlib
import errno
import io
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, TypeVar

from vlmkit.errors import Exit, VlmkitError, one_line
from vlmkit.io.files import atomic_write

SNIFF_BYTES = 16
LINE_BYTES = 4096  # what the first line may have to be a path
LONGEST_NAME = 300  # characters of a name in a message
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but tab and line break

T = TypeVar("T")

if TYPE_CHECKING:
    from rich.console import Console

    from vlmkit.io.records import Failed, Record
    from vlmkit.io.summary import Summary


class ClosedPipe(BaseException):
    """Standard output was closed by its reader: the command ends quietly, with exit code 0."""


def form_of(path: str | None) -> str:
    """The form of records in an output file of this name."""
    return {".safetensors": "safetensors", ".parquet": "parquet"}.get(os.path.splitext(path or "")[1].lower(), "jsonl")


class Output:
    """Standard output, or a file that is written completely or not at all (see `files.atomic_write`).

    Records are written in the `form` that the name of the file says, or in another one by the caller's wish.
    """

    def __init__(self, path: str | None = None) -> None:
        self.form = form_of(path)
        self.name = "standard output" if path is None or path == "-" else path
        self._stack = contextlib.ExitStack()
        self._file = self._opened(None if path == "-" else path)
        name = self._file.name  # of standard output a number
        self._is_stream = not (isinstance(name, str) and os.path.isfile(name))

    def _opened(self, path: str | None) -> IO[bytes]:
        if path is not None:
            from vlmkit.io.sources import is_picture_name, reader_of

            if os.path.isfile(path) and (is_picture_name(path) or reader_of(path)):
                raise VlmkitError(f"{path} is a picture or a tar, which would be lost", "name another file to write")
            with _write_errors(f"cannot write {path}", "name a file in a folder that you can write to"):
                return self._stack.enter_context(atomic_write(path))
        if sys.stdout is None:
            raise VlmkitError("standard output is closed", "open it, or use -o FILE")
        return self._stack.enter_context(open(sys.stdout.fileno(), "wb", buffering=0, closefd=False))

    def __enter__(self) -> "Output":
        return self

    def write(self, data: bytes) -> None:
        """Write complete lines. One system call a line keeps it in one piece on a pipe even when a signal arrives."""
        view = memoryview(data)
        try:
            with _no_bar() if self._is_stream else contextlib.nullcontext():
                while view:
                    view = view[self._file.write(view) or 0 :]
        except BrokenPipeError:
            raise ClosedPipe from None
        except OSError as error:
            raise _cannot_write(self.name, error) from None

    def write_records(self, records: "Iterable[Record]", form: str | None = None) -> None:
        """Write `records` in the form `jsonl`, `safetensors` or `parquet`; the first two as they come."""
        import tempfile

        from vlmkit.io.blobs import pack, pack_file
        from vlmkit.io.records import dumps

        form = form or self.form
        if form == "jsonl":
            for record in records:
                self.write(dumps(record))
        elif form == "parquet":
            self._write_parquet(records)
        elif self._is_stream:
            for blob in pack(records):
                self.write(blob)
        else:
            with (
                _write_errors(f"cannot write {self.name}", "free some space"),
                tempfile.TemporaryFile(dir=os.path.dirname(self._file.name)) as spool,
            ):
                pack_file(records, self._file, spool)

    def _write_parquet(self, records: "Iterable[Record]") -> None:
        from vlmkit.io.parquet import write_parquet

        folder = None if self._is_stream else os.path.dirname(self._file.name)
        with _write_errors(f"cannot write {self.name}", "free some space"):
            mixed = write_parquet(records, self, folder)
        if mixed:
            columns = ", ".join(mixed)
            warn(f"{self.name}: written as JSON, as their values are of several kinds or without fields: {columns}")

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        with _write_errors(f"cannot write {self.name}", "free some space"):
            self._stack.__exit__(kind, *error)


def _no_bar() -> contextlib.AbstractContextManager[None]:
    """Hides the progress bar while something else is written to the same terminal."""
    if "tqdm" not in sys.modules or sys.stdout is None or not sys.stdout.isatty():
        return contextlib.nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode()


def _cannot_write(name: str, error: OSError) -> VlmkitError:
    remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "name another file"
    return VlmkitError(f"cannot write {name}: {error.strerror}", remedy)


@contextlib.contextmanager
def _write_errors(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VlmkitError(f"{what}: {error.strerror}", remedy) from None


class Failures:
    """Reports the records that failed, and decides the exit code: some failed, or the only one did.

    Without `single_input` the only one counts as one of several: the others were done by an earlier run. Those in the
    list `ignore`, of an earlier run, are neither reported nor count. At the end one line tells the `summary`.
    """

    def __init__(
        self,
        errors: str | None = None,
        *,
        single_input: bool = True,
        ignore: str | None = None,
        summary: "Summary | None" = None,
    ) -> None:
        from vlmkit.io.summary import Accepted

        self._accepted = Accepted(ignore) if ignore is not None else None
        self._output = Output(errors) if errors is not None else None
        self._single_input = single_input
        self._summary = summary
        self.seen = 0
        self.count = 0
        self.accepted = 0
        self.incomplete = False  # whether a part of something was lost, which was told

    def __enter__(self) -> "Failures":
        return self

    def filter_failures(self, results: "Iterable[T | Failed]") -> Iterator[T]:
        """The `results` without failures, which go to standard error and the `--errors` file."""
        from vlmkit.io.records import Failed, dumps

        for result in results:
            self.seen += 1
            if not isinstance(result, Failed):
                yield result
                continue
            if result.id is None:
                result.id = f"record {self.seen}"
            if self._accepted and result in self._accepted:
                self.accepted += 1
            else:
                self.count += 1
                where = "record" if result.image is None else "address" if "://" in result.image else "file"
                remedy = result.remedy or f"check the {where}"
                warn(f"{_shortened(str(result.image or result.id))}: {result.error}: left out, {remedy}")
            if self._output:
                self._output.write(dumps(result.as_record()))

    def exit_code(self) -> Exit:
        """The exit code. Raises AlreadyReported where the only input failed, so that no file is changed."""
        if self._single_input and self.seen == self.count == 1:
            raise AlreadyReported
        return Exit.SOME_FAILED if self.count or self.incomplete else Exit.OK

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        is_done = kind is None or kind is AlreadyReported
        if self._output:
            # The list of failures is worth keeping where the failures themselves end the command.
            self._output.__exit__(*(None, None, None) if is_done else (kind, *error))
        if self._summary and is_done and (line := self._summary.line(self.seen, self.count, self.accepted)):
            warn(line)


def _shortened(name: str) -> str:
    """A name without its middle if it is very long, as that of a list of names without -0."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]} … {name[-LONGEST_NAME // 2 :]}"


class AlreadyReported(Exception):
    """A fatal error whose line was already printed on standard error."""


def warn(text: str) -> None:
    """One line on standard error, above a progress bar if there is one."""
    if sys.stderr is None:
        return
    line = one_line(f"vlmkit: {text}")
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed: nobody is left to read it
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def printable(text: str) -> bytes:
    """A model's text without control sequences, which could clear the screen or set the clipboard."""
    return CONTROL.sub("", text).encode()


def progress(
    results: "Iterable[T | Failed]", *, quiet: bool, unit: str, count: Callable[[], int | None] = lambda: None
) -> "Iterable[T | Failed]":
    """`results` with a bar on standard error, if that is a terminal.

    `count` returns how many there will be; it runs beside, and the bar says when they will be done once it has ended.
    """
    return results if quiet or not stderr_is_terminal() else _with_bar(results, unit, count)


def _with_bar(results: "Iterable[T | Failed]", unit: str, count: Callable[[], int | None]) -> "Iterator[T | Failed]":
    from tqdm import tqdm

    with tqdm(unit=f" {unit}", smoothing=0.05, dynamic_ncols=True, leave=False) as bar:
        Thread(target=lambda: setattr(bar, "total", count()), daemon=True).start()
        for result in results:
            bar.update()
            yield result


@contextlib.contextmanager
def steps_bar(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A function to call with how many of `total` steps are done, first of all with how many were done before.

    A bar if standard error is a terminal, and a line at the end.
    """
    if quiet or not stderr_is_terminal():
        yield lambda done: None
        return
    from tqdm import tqdm

    before: list[int] = []
    with tqdm(total=total, unit=" steps", dynamic_ncols=True, leave=False) as bar:

        def show(done: int) -> None:
            if not before:
                bar.initial = bar.n = done
                before.append(done)
            bar.update(done - bar.n)

        yield show
        seconds = bar.format_dict["elapsed"]
    count = bar.n - sum(before)
    warn(f"{count} steps in {seconds:.1f} s, {count / max(seconds, 1e-3):.2g} a second")


def console(stderr: bool = False) -> "Console":
    """Standard output, or standard error, for tables: without any style where NO_COLOR is set."""
    from rich.console import Console

    return Console(stderr=stderr, color_system=None if os.environ.get("NO_COLOR") else "auto")


def tell_dimly(text: str) -> None:
    """One dim line on standard error, for what a person should know and may overlook."""
    from rich.text import Text

    console(stderr=True).print(Text(one_line(f"vlmkit: {text}")), style="dim", soft_wrap=True)


def stderr_is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def stdin_is_terminal() -> bool:
    """Whether nothing is piped in: standard input is a terminal or closed."""
    return sys.stdin is None or sys.stdin.closed or sys.stdin.isatty()


def stdin_is_pipe() -> bool:
    """Whether another program writes into standard input."""
    return sys.stdin is not None and not sys.stdin.closed and stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)


def stdin_bytes() -> tuple[bytes, IO[bytes]]:
    """The first line of standard input, of long ones the first bytes, and a stream of all of it, those included."""
    raw: Any = sys.stdin.buffer
    head = b""
    while len(head) < LINE_BYTES and b"\n" not in head.lstrip() and not (b"\0" in head and len(head) >= SNIFF_BYTES):
        more = raw.read1(LINE_BYTES - len(head))
        if not more:
            break
        head += more
    if raw.seekable():
        raw.seek(-len(head), os.SEEK_CUR)
        return head, raw
    return head, io.BufferedReader(_Rewound(head, raw), 1 << 16)


class _Rewound(io.RawIOBase):
    """A pipe whose first bytes were read already."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest: Any = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._head[: len(buffer)] or self._rest.read1(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def read_head(path: Path | str) -> bytes:
    """The first bytes of a regular file."""
    with open(path, "rb") as file:
        return file.read(SNIFF_BYTES)


@contextlib.contextmanager
def stdin_file() -> Iterator[str]:
    """Standard input as a temporary file, for what is read more than once."""
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="vlmkit-") as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
        spool.flush()
        yield spool.name
