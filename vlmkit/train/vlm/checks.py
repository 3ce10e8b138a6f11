"""What can be refused before anything is read."""

import importlib.util
import os

from vlmkit.errors import VlmkitError
from vlmkit.train.ranks import world
from vlmkit.train.report import WHERE
from vlmkit.train.vlm.config import VlmConfig

POWERS = {"tokens": 0.0, "root": 0.5, "replies": 1.0}  # a reply's tokens weigh 1 / length ** power


def check(config: VlmConfig) -> None:
    """Raises VlmkitError where `config` contradicts itself, or wants what this machine does not have."""
    if config.batch_size % (config.accumulate * world()):
        what = f"{config.batch_size} pictures do not divide into {config.accumulate * world()} equal parts"
        raise VlmkitError(what, "change --batch-size or --accumulate")
    if config.start not in (None, "mini") and not os.path.isdir(config.start):
        raise VlmkitError(f"{config.start} is no folder", "name one that vlmkit train made, or mini")
    if config.views < 1:
        raise VlmkitError(f"views = {config.views} leaves nothing to see", "1 is the picture alone")
    if config.weigh not in POWERS:
        raise VlmkitError(f"weigh = {config.weigh!r} is not known", f"use {', '.join(POWERS)}")
    if config.lora and config.stage == "align":
        raise VlmkitError("align trains the projector alone", "leave --lora out, or use it with instruct")
    if config.quantize is not None:
        _four_bit(config)
    if config.fsdp and (config.device != "cuda" or world() == 1):
        lack = "there is none" if config.device != "cuda" else "this is one process"
        raise VlmkitError(f"--fsdp shards the model over several GPUs, and {lack}", "use torchrun, or leave it out")
    if config.report_to is not None:
        if config.report_to not in WHERE:
            raise VlmkitError(f"unknown --report-to {config.report_to}", f"use {' or '.join(WHERE)}")
        _needs(config.report_to, f"--report-to {config.report_to}", f"pip install {config.report_to}")
    if config.stage == "prefer":
        _needs("trl", "prefer", "pip install 'vlmkit[prefer]'")


def _four_bit(config: VlmConfig) -> None:
    if config.quantize != "4bit":
        raise VlmkitError(f"--quantize {config.quantize} is not known", "use 4bit")
    if config.device != "cuda":
        raise VlmkitError("4 bit needs a CUDA device, and there is none", "leave --quantize out, or use --lora alone")
    if config.stage != "align" and not config.lora:
        raise VlmkitError("4-bit weights cannot be trained themselves", "add --lora R: adapters beside them (QLoRA)")
    _needs("bitsandbytes", "4 bit", "pip install bitsandbytes")


def _needs(package: str, what: str, remedy: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise VlmkitError(f"{what} needs the package {package}", remedy)
