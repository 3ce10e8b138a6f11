"""Pictures with captions: DATA as every stage reads it, each picture once."""

from PIL.Image import Image

from vlmkit.errors import VlmkitError
from vlmkit.images import open_picture
from vlmkit.sources import Bytes, PictureError
from vlmkit.streams import Failures
from vlmkit.train.dialogues import read_captioned
from vlmkit.train.mixture import Reading
from vlmkit.train.rows import Captioned

Pictures = Reading[Captioned]


def read_pictures(
    data: list[str],
    failures: Failures,
    images: str | None = None,
    limit: int | None = None,
    workers: int = 4,
    quiet: bool = False,
) -> Pictures:
    """The pictures of DATA in order, at most `limit` of them; `images` is the folder of relative names.

    Rows about one picture become one sample with all their captions, so that no caption is ever contrasted with its own
    picture. Its id and its weight are those of the first of these rows. What cannot be used goes to `failures`.
    """
    reading = read_captioned(data, images=images, limit=limit, failures=failures, workers=workers, quiet=quiet)
    found: dict[Bytes, tuple[Captioned, int]] = {}
    for row, source in zip(reading.rows, reading.sources, strict=True):
        first, place = found.get(row.picture, (None, source))
        found[row.picture] = (_joined(first, row) if first else row, place)
    rows, sources = zip(*list(found.values())[:limit], strict=True)
    return Reading(list(rows), list(sources), reading.table)


def _joined(first: Captioned, row: Captioned) -> Captioned:
    new = tuple(caption for caption in row.captions if caption not in first.captions)
    return Captioned(first.id, first.picture, first.captions + new)


def read_samples(data: list[str], images: str | None = None, limit: int | None = None) -> list[Captioned]:
    """The pictures of DATA, all of them usable: raises VlmkitError where one is not."""
    failures = Failures()
    pictures = read_pictures(data, failures, images, limit)
    if failures.count:
        raise VlmkitError(f"{failures.count} rows cannot be used", "mend or remove them")
    return pictures.rows


def open_sample(sample: Captioned, size: int) -> Image:
    """The decoded RGB picture, upright; a large JPEG at no less than 1.6 times `size`. Raises VlmkitError."""
    try:
        return open_picture(sample.picture, size)[0]
    except PictureError as error:
        raise VlmkitError(f"{sample.id}: {error}", "mend or remove the picture, then train again") from None
