"""Public data sets as records, one file each."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmkit.datasets.base import DataSet

# Where each data set is declared, as "module:attribute" of this package.
REGISTRY = {
    "coco-captions": "coco:CAPTIONS",
    "flickr30k": "flickr30k:FLICKR30K",
    "llava-pretrain": "llava:PRETRAIN",
    "llava-instruct-150k": "llava:INSTRUCT",
    "mix665k": "llava:MIX665K",
    "llava-bench": "llava:BENCH",
    "vqav2": "vqav2:VQAV2",
    "textvqa": "textvqa:TEXTVQA",
    "gqa": "gqa:GQA",
    "pope": "pope:POPE",
    "daquar": "daquar:DAQUAR",
    "easy-vqa": "easy_vqa:EASY_VQA",
    "cifar10": "cifar10:CIFAR10",
    "imagenette": "imagenette:IMAGENETTE",
}


def data_set(name: str) -> "DataSet":
    """The data set called `name`, one of REGISTRY."""
    module, attribute = REGISTRY[name].split(":")
    return getattr(import_module(f"vlmkit.datasets.{module}"), attribute)
