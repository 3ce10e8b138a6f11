"""Files and folders that appear complete or not at all, files that grow line by line, locks, and the user's folders."""

import atexit
import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import IO, Any

from vlmkit.errors import VlmkitError

WAIT_NOTICE_SECONDS = 1.0
FULL_DISK = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
FOLDERS = {"cache": "~/.cache", "config": "~/.config", "data": "~/.local/share", "state": "~/.local/state"}


@contextmanager
def explain_no_room(place: str | Path, what: str, remedy: str) -> Iterator[None]:
    """Raise VlmkitError where `what` is written in the block does not fit on the disk of `place`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise VlmkitError(f"{place} has no room for {what} ({error.strerror})", remedy) from None


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb", *, durable: bool = True) -> Iterator[IO[Any]]:
    """A temporary file beside `path`, opened with `mode`; renamed to `path` when the block ends without exception.

    Its `name` is its path, for libraries that open files themselves. A file that is replaced keeps its permissions, a
    symbolic link its target; an existing device or FIFO is written to directly. With `durable` the data is on the disk
    before the rename; without, as suits a cache, a crash of the machine may leave an empty file. Raises OSError.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, mode, buffering=0 if "b" in mode else -1) as file:
            yield file
        return
    permissions = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else None
    with _temporary(target) as temporary:
        file = open(temporary, mode.replace("w", "x"))  # noqa: SIM115 (closed below, in two ways)
        try:
            if permissions is not None:
                os.chmod(temporary, permissions)
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            file.close()
            os.replace(temporary, target)
        except BaseException:  # a signal too must close the file
            with contextlib.suppress(OSError):  # what is given up may not fit on the disk
                file.close()
            raise


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`; renamed to `path` when the block ends without exception.

    With `replace` a folder at `path` goes first; if another process then is quicker, its folder stays. Without, `path`
    must be new or an empty folder. Raises OSError and VlmkitError.
    """
    if not replace:
        check_new_folder(path)
    target = os.path.abspath(path)
    with _temporary(target) as temporary:
        os.mkdir(temporary)
        yield Path(temporary)
        if replace:
            shutil.rmtree(target, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rename(temporary, target)
        else:
            check_new_folder(path)
            os.rename(temporary, target)


def read_text(path: str | Path, remedy: str) -> str:
    """The text of a file that the user named, without a byte order mark. Raises VlmkitError with this `remedy`."""
    try:
        return decode_text(Path(path).read_bytes(), path, remedy)
    except OSError as error:
        raise VlmkitError(f"{path}: {error.strerror}", remedy) from None


def decode_text(data: bytes, name: str | Path, remedy: str) -> str:
    """`data`, the content of what is called `name`, as `read_text` does."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise VlmkitError(f"{name}: the text is not UTF-8", remedy) from None


def check_new_folder(path: str | Path) -> None:
    """Raise VlmkitError if `path` exists and is not an empty folder, or if it cannot be made."""
    folder = Path(path)
    if folder.is_dir() and not folder.is_symlink():
        if any(folder.iterdir()):
            raise VlmkitError(f"{folder} is not empty", "name a new folder with -o, or remove this one")
    elif os.path.lexists(folder):
        raise VlmkitError(f"{folder} exists and is not a folder", "name a new folder with -o")
    if not folder.absolute().parent.is_dir():
        raise VlmkitError(f"{folder.absolute().parent} does not exist", "make that folder first")


@contextmanager
def _temporary(target: str) -> Iterator[str]:
    """A free hidden name beside `target`. What has that name is removed when the block or the process ends."""
    folder, name = os.path.split(target)
    temporary = f"{folder}/.{name}.{os.urandom(4).hex()}.part"

    def remove() -> None:
        shutil.rmtree(temporary, ignore_errors=True)  # a folder
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # a file

    atexit.register(remove)  # a signal may arrive before a `with` block is entered
    try:
        yield temporary
    finally:
        remove()
        atexit.unregister(remove)


@contextmanager
def append_lines(path: str | Path, on_line: Callable[[bytes], None]) -> Iterator[IO[bytes]]:
    """The JSON Lines file at `path`, unbuffered and locked, for more lines; `on_line` gets each that is there already.

    `on_line` raises ValueError for an invalid line. If that is the last line and has no line feed, it
    was left by a killed process and is removed; else a ValueError names it. Raises BlockingIOError while another
    process has the file open, and OSError.
    """
    with open(path, "a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        end, line = 0, b"\n"
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    on_line(line)
                except ValueError as error:
                    if line.endswith(b"\n") or (number == 1 and not line.startswith(b"{")):
                        raise ValueError(f"{path}:{number} {error}") from None
                    file.truncate(end)
                    line = b"\n"
                end += len(line)
        if not line.endswith(b"\n"):
            file.write(b"\n")
        yield file


@contextmanager
def lock(path: str | Path, *, wait: bool = True, on_wait: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Whether this process has the lock of the file or folder `path`, until the block or the process ends.

    With `wait` it is waited for, and after a second `on_wait` is called once, from another thread.
    """
    number = os.open(path, os.O_RDONLY)
    notice = Timer(WAIT_NOTICE_SECONDS, on_wait)
    try:
        locked = True
        if wait:
            notice.start()
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            locked = False
        notice.cancel()
        yield locked
    finally:
        notice.cancel()
        os.close(number)


def user_folder(kind: str) -> Path:
    """vlmkit's folder for the user's files of a `kind`, a key of FOLDERS, by $XDG_CACHE_HOME and so on."""
    return Path(os.environ.get(f"XDG_{kind.upper()}_HOME") or os.path.expanduser(FOLDERS[kind])) / "vlmkit"
