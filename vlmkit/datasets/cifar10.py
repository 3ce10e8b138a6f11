"""CIFAR-10 (Krizhevsky, 2009): 60,000 pictures of 32 x 32 pixels in ten classes, from the binary form.

URL, size and SHA-256 as tensorflow_datasets records them (url_checksums/cifar10.txt); the licence was not looked up.
A record of the binary form is one byte, the class, and 3,072 bytes, the planes of red, green and blue.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.io.files import atomic_write
from vlmkit.io.records import Failed, Record

ARCHIVE = File(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar10/cifar-10-binary.tar.gz",
    170052171,
    "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    unpack="cifar10",
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
PARTS = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}


def _records(root: Path, part: str) -> Iterator[Record | Failed]:
    """Each picture becomes a PNG file, unless it is one already."""
    folder = root / "cifar10" / part
    folder.mkdir(exist_ok=True)
    number = 0
    for name in PARTS[part]:
        with open(root / "cifar10/cifar-10-batches-bin" / name, "rb") as batch:
            while row := batch.read(1 + 3 * SIDE * SIDE):
                image = folder / f"{number:05}.png"
                if not image.exists():
                    _write(image, row[1:])
                yield {
                    "id": f"cifar10-{part}-{number}",
                    "image": f"cifar10/{part}/{image.name}",
                    "answers": [CLASSES[row[0]]],
                }
                number += 1


def _write(path: Path, planes: bytes) -> None:
    import numpy as np
    from PIL import Image

    pixels = np.frombuffer(planes, np.uint8).reshape(3, SIDE, SIDE).transpose(1, 2, 0)
    with atomic_write(path, durable=False) as file:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")


CIFAR10 = DataSet(
    name="cifar10",
    what="small pictures of ten kinds of things; the kind is in answers",
    page="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence=None,
    used_by=("classify", "eval classify"),
    splits={part: Split((ARCHIVE,), partial(_records, part=part)) for part in PARTS},
)
