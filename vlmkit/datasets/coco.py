"""COCO captions (Chen and others, 2015): train and val of 2014 and 2017, and the split of Karpathy and Fei-Fei (2015).

URLs, sizes and SHA-256 as tensorflow_datasets records them (url_checksums/coco_captions.txt). Licence: captions CC BY
4.0, photographs under the terms of Flickr (cocodataset.org, Terms of Use).
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.io.records import Failed, Record, loads

SITE = "http://images.cocodataset.org"
_SHA256 = {
    "annotations_trainval2014": (252872794, "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"),
    "annotations_trainval2017": (252907541, "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
    "train2014": (13510573713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
    "val2014": (6645013297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
    "train2017": (19336861798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
    "val2017": (815585330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
}
KARPATHY = File(
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    "karpathy/caption_datasets.zip",
    36745453,
    "sha256:4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
    unpack="karpathy",
)


def _file(folder: str, name: str) -> File:
    size, digest = _SHA256[name]
    return File(f"{SITE}/{folder}/{name}.zip", f"coco/{name}.zip", size, f"sha256:{digest}", unpack="coco")


def pictures(name: str) -> File:
    """The pictures of train2014, val2014, train2017 or val2017, in coco/NAME."""
    return _file("zips", name)


def single(image: str) -> str:
    """The URL of the picture coco/train2017/000000000009.jpg and its like."""
    return f"{SITE}/{image.removeprefix('coco/')}"


def photo(name: str, number: int) -> str:
    """Where the picture `number` of the split `name` is."""
    return f"coco/{name}/{'COCO_' + name + '_' if name.endswith('2014') else ''}{number:012}.jpg"


def _captions(root: Path, name: str) -> Iterator[Record | Failed]:
    """Of the official annotations; in the order of their list of images."""
    document = loads((root / f"coco/annotations/captions_{name}.json").read_bytes())
    captions: dict[int, list[str]] = {}
    for found in document["annotations"]:
        captions.setdefault(found["image_id"], []).append(found["caption"].strip())
    for image in document["images"]:
        found = {"id": f"coco-{image['id']}", "image": f"coco/{name}/{image['file_name']}"}
        yield {**found, "captions": captions.get(image["id"], []), "width": image["width"], "height": image["height"]}


def karpathy(root: Path, name: str, parts: tuple[str, ...]) -> Iterator[tuple[Record, list[str]]]:
    """(entry, captions) of the pictures of Karpathy's dataset_NAME.json that are in one of `parts`."""
    for image in loads((root / f"karpathy/dataset_{name}.json").read_bytes())["images"]:
        if image["split"] in parts:
            yield image, [" ".join(sentence["raw"].split()) for sentence in image["sentences"]]


def _karpathy_split(root: Path, parts: tuple[str, ...]) -> Iterator[Record | Failed]:
    for image, captions in karpathy(root, "coco", parts):
        path = f"coco/{image['filepath']}/{image['filename']}"
        yield {"id": f"coco-{image['cocoid']}", "image": path, "captions": captions}


def _split(name: str) -> Split:
    annotations = _file("annotations", f"annotations_trainval{name[-4:]}")
    return Split((annotations,), partial(_captions, name=name), (pictures(name),), single)


def _karpathy(*parts: str) -> Split:
    both = (pictures("train2014"), pictures("val2014"))
    return Split((KARPATHY,), partial(_karpathy_split, parts=parts), both, single)


CAPTIONS = DataSet(
    name="coco-captions",
    what="photographs of everyday scenes, five captions each",
    page="https://cocodataset.org",
    licence="captions CC BY 4.0, photographs under the terms of Flickr",
    used_by=("train contrastive", "train align", "eval caption", "eval retrieval"),
    splits={
        **{name: _split(name) for name in ("train2017", "val2017", "train2014", "val2014")},
        "karpathy-train": _karpathy("train", "restval"),
        "karpathy-val": _karpathy("val"),
        "karpathy-test": _karpathy("test"),
    },
)
