"""Progress of downloads on a terminal: one bar a file and one for all."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from vlmkit.download.fetch import OnProgress
from vlmkit.io.terminal import stderr_is_terminal

T = TypeVar("T")


class Bars:
    """Bars on standard error; none if that is not a terminal, or with `quiet`."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and stderr_is_terminal()
        self._all: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_: object) -> None:
        if self._all is not None:
            self._all.close()

    def expect(self, size: int | None) -> None:
        """Set the number of bytes of all files; None if unknown."""
        if self._shown:
            self.__exit__()
            self._all = _bar(desc="all", total=size, unit="B")

    @contextmanager
    def file(self, name: str, size: int | None) -> Iterator[OnProgress]:
        if not self._shown:
            yield lambda arrived, size: None
            return
        with _bar(desc=name, total=size, unit="B") as bar:

            def on_progress(arrived: int, size: int | None) -> None:
                with self._lock:
                    bar.total = size
                    if self._all is not None:
                        self._all.update(arrived - bar.n)
                    bar.update(arrived - bar.n)

            yield on_progress

    def files(self, items: Iterable[T], name: str) -> Iterable[T]:
        """`items`, one for each file, with a bar that counts them."""
        return _bar(items, desc=name, unit=" files") if self._shown else items


def _bar(items: Any = None, **how: Any) -> Any:
    from tqdm import tqdm

    return tqdm(items, unit_scale=how["unit"] == "B", dynamic_ncols=True, leave=False, **how)
