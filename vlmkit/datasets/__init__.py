"""Public data sets as records, one file each."""

from vlmkit.io.registry import Registry

# Each is a vlmkit.datasets.base.DataSet; packages add theirs by entry points of this group.
DATASETS = Registry(
    "vlmkit.datasets",
    {
        "coco-captions": "vlmkit.datasets.coco:CAPTIONS",
        "flickr30k": "vlmkit.datasets.flickr30k:FLICKR30K",
        "llava-pretrain": "vlmkit.datasets.llava:PRETRAIN",
        "llava-instruct-150k": "vlmkit.datasets.llava:INSTRUCT",
        "mix665k": "vlmkit.datasets.llava:MIX665K",
        "llava-bench": "vlmkit.datasets.llava:BENCH",
        "vqav2": "vlmkit.datasets.vqav2:VQAV2",
        "textvqa": "vlmkit.datasets.textvqa:TEXTVQA",
        "gqa": "vlmkit.datasets.gqa:GQA",
        "pope": "vlmkit.datasets.pope:POPE",
        "daquar": "vlmkit.datasets.daquar:DAQUAR",
        "easy-vqa": "vlmkit.datasets.easy_vqa:EASY_VQA",
        "cifar10": "vlmkit.datasets.cifar10:CIFAR10",
        "imagenette": "vlmkit.datasets.imagenette:IMAGENETTE",
    },
)
