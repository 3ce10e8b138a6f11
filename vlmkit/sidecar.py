"""--sidecar: a caption as `photo.txt` beside `photo.jpg`, as trainers of image models read them."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vlmkit.questions import Asked
from vlmkit.records import Failed, Record
from vlmkit.streams import Output


def beside(image: object) -> Path | None:
    """Where the caption of a picture goes; None where the picture is not a file of its own."""
    path = Path(image) if isinstance(image, str) else None
    return path.with_suffix(".txt") if path and path.is_file() else None


def without_caption(items: Iterable[Asked | Failed]) -> Iterator[Asked | Failed]:
    """Those of `items` that have no sidecar yet."""
    for item in items:
        path = beside(item.record.get("image")) if isinstance(item, Asked) else None
        if path is None or not os.path.lexists(path):
            yield item


def written(results: Iterable[Record | Failed], *, force: bool) -> Iterator[Record | Failed]:
    """`results`, after each caption was written beside its picture; never over a file that was there, but by force."""
    made: set[Path] = set()
    for result in results:
        if isinstance(result, Failed):
            yield result
            continue
        path = beside(result.get("image"))
        if path is None:
            yield Failed.of(result, "no file of its own, so no place for a sidecar")
        elif path in made or (os.path.lexists(path) and not force):
            yield Failed.of(result, f"{path} is there already", "" if path in made else "--force writes it anew")
        else:
            made.add(path)
            with Output(str(path)) as out:
                out.write(f"{result['caption']}\n".encode())
            yield result
