"""--sidecar: a caption as `photo.txt` beside `photo.jpg`, as trainers of image models read them."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vlmkit.generate.questions import ChatSample
from vlmkit.io.records import Failed, Record
from vlmkit.io.terminal import Output


def sidecar_of(image: object) -> Path | None:
    """Where the caption of a picture goes; None where the picture is not a file of its own."""
    path = Path(image) if isinstance(image, str) else None
    return path.with_suffix(".txt") if path and path.is_file() else None


def without_sidecar(items: Iterable[ChatSample | Failed]) -> Iterator[ChatSample | Failed]:
    """Those of `items` that have no sidecar yet."""
    for item in items:
        path = sidecar_of(item.record.get("image")) if isinstance(item, ChatSample) else None
        if path is None or not os.path.lexists(path):
            yield item


def write_sidecars(results: Iterable[Record | Failed], *, force: bool) -> Iterator[Record | Failed]:
    """`results`, each after its caption was written beside its picture; existing files are replaced with `force`."""
    written: set[Path] = set()
    for result in results:
        path = None if isinstance(result, Failed) else sidecar_of(result.get("image"))
        if isinstance(result, Failed):
            yield result
        elif path is None:
            yield Failed.of(result, "the picture is not a file, so there is no place for a sidecar")
        elif path in written:
            yield Failed.of(result, f"{path} is the sidecar of another picture, too")
        elif os.path.lexists(path) and not force:
            yield Failed.of(result, f"{path} already exists", "pass --force to replace it")
        else:
            written.add(path)
            with Output(str(path)) as out:
                out.write(f"{result['caption']}\n".encode())
            yield result
