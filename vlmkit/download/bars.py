"""Progress of downloads on a terminal: one bar a file and one for all."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vlmkit.streams import stderr_is_terminal

Told = Callable[[int], None]


class Bars:
    """Bars on standard error, if that is a terminal and they are wanted. `total` is the bytes of all, where known."""

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
        """So many bytes are to come in all."""
        if self._shown:
            from tqdm import tqdm

            self._all = tqdm(desc="all", total=size, unit="B", unit_scale=True, dynamic_ncols=True, leave=False)

    @contextmanager
    def file(self, name: str, size: int | None) -> Iterator[tuple[Told, Told]]:
        """What to tell of each arrival, and of the size once it is known."""
        if not self._shown:
            yield (lambda count: None), (lambda size: None)
            return
        from tqdm import tqdm

        with tqdm(desc=name, total=size, unit="B", unit_scale=True, dynamic_ncols=True, leave=False) as bar:

            def told(count: int) -> None:
                with self._lock:
                    bar.update(count)
                    if self._all is not None:
                        self._all.update(count)

            def begun(size: int) -> None:
                bar.total = size
                bar.refresh()

            yield told, begun

    @contextmanager
    def unpacking(self, name: str) -> Iterator[Callable[[], None]]:
        """What to call for each file that came out of an archive."""
        if not self._shown:
            yield lambda: None
            return
        from tqdm import tqdm

        with tqdm(desc=f"unpacking {name}", unit=" files", dynamic_ncols=True, leave=False) as bar:
            yield lambda: bar.update() and None
