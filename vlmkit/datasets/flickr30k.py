"""Flickr30k (Young and others, 2014) in the split of Karpathy and Fei-Fei (2015).

The photographs come from the copy at huggingface.co/datasets/nlphuji/flickr30k (flickr30k-images.zip, 4.39 GB; the
exact size and sum were not looked up), captions and split from Karpathy's caption_datasets.zip. The authors give the
photographs out through a form; those who use them agree to its terms.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.datasets.coco import KARPATHY, karpathy
from vlmkit.io.records import Failed, Record

PICTURES = File(
    "https://huggingface.co/datasets/nlphuji/flickr30k/resolve/main/flickr30k-images.zip",
    "flickr30k/flickr30k-images.zip",
    unpack="flickr30k",
)


def _records(root: Path, part: str) -> Iterator[Record | Failed]:
    for image, captions in karpathy(root, "flickr30k", (part,)):
        name = image["filename"]
        path = f"flickr30k/flickr30k-images/{name}"
        yield {"id": f"flickr30k-{name.partition('.')[0]}", "image": path, "captions": captions}


FLICKR30K = DataSet(
    name="flickr30k",
    what="31,000 photographs of people and animals, five captions each",
    page="https://shannon.cs.illinois.edu/DenotationGraph/",
    licence=None,
    terms="research and teaching alone, photographs under the terms of Flickr: ask at its page",
    used_by=("train contrastive", "eval caption", "eval retrieval"),
    splits={part: Split((KARPATHY,), partial(_records, part=part), (PICTURES,)) for part in ("train", "val", "test")},
)
