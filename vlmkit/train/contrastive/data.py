"""Pictures with captions, read from INPUT as every command reads it, and split into training and validation."""

from dataclasses import dataclass

from PIL.Image import Image

from vlmkit.errors import VlmkitError
from vlmkit.images import open_picture
from vlmkit.inputs import Reading, read_inputs
from vlmkit.records import Failed
from vlmkit.sources import Bytes, PictureError
from vlmkit.train.split import held_out


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture, still closed, and its captions (at least one)."""

    id: str
    source: Bytes
    captions: tuple[str, ...]

    def picture(self, size: int) -> Image:
        """The decoded RGB picture, upright; a large JPEG at no less than twice `size`. Raises VlmkitError."""
        try:
            return open_picture(self.source, size)[0]
        except PictureError as error:
            raise VlmkitError(f"{self.id}: {error}", "mend or remove the picture, then train again") from None


def read_samples(data: list[str], images: str | None = None, limit: int | None = None) -> list[Sample]:
    """The captioned pictures of `data` in order, at most `limit`; `images` is the folder of relative names.

    Training on half of what was asked for would go unnoticed, so the first record that cannot be used raises
    VlmkitError.
    """
    samples: list[Sample] = []
    for item in read_inputs(data, Reading(images=images)):
        if limit is not None and len(samples) == limit:
            break
        if isinstance(item, Failed):
            raise VlmkitError(f"{item.id}: {item.error}", "mend or remove it, then train again")
        captions = item.record.get("captions")
        name = str(item.record.get("id", item.record.get("image")))
        if not isinstance(captions, list) or not captions or not all(isinstance(c, str) for c in captions):
            raise VlmkitError(f"{name}: no captions", "give each record a list `captions` of one or more strings")
        if "image" not in item.record:
            raise VlmkitError(f"{name}: no image", "give each record an `image`")
        try:
            samples.append(Sample(name, item.locate(), tuple(captions)))
        except PictureError as error:
            raise VlmkitError(f"{name}: {error}", "mend or remove it, then train again") from None
    if not samples:
        raise VlmkitError("there is nothing to train on", "name tar shards or records with captions")
    return samples


def split(samples: list[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """(training, validation) samples: about `fraction` of them held out, by a hash of the id, so it never shifts."""
    if not 0 < fraction < 1:
        raise VlmkitError(f"validation fraction {fraction} is not between 0 and 1", "give for example 0.1")

    training = [sample for sample in samples if not held_out(sample.id, fraction)]
    validation = [sample for sample in samples if held_out(sample.id, fraction)]
    if not training or not validation:
        raise VlmkitError("too few pictures to hold some out for validation", "give more data, or --val DATA")
    return training, validation
