"""Whether the settings of a run fit each other, the hardware and the packages that are installed."""

import os

from vlmkit.errors import VlmkitError, check_installed
from vlmkit.train.config import ContrastiveConfig, LitConfig, Stage, TrainConfig, VlmConfig


def check(config: TrainConfig) -> None:
    """Raises VlmkitError where settings contradict each other, or need hardware or packages that are missing."""
    from vlmkit.train.distributed import world

    check_installed("train", "vlmkit[train]", "accelerate", "matplotlib", "onnx", "peft", "tomli_w")
    if config.patience and config.val is None:
        raise VlmkitError("--early-stop requires validation", "give --val")
    if config.report_to is not None:
        requirement = "vlmkit[tensorboard]" if config.report_to == "tensorboard" else config.report_to
        check_installed(f"--report-to {config.report_to}", requirement, config.report_to)
    if config.precision == "fp16" and config.device != "cuda":
        raise VlmkitError("--precision fp16 requires a CUDA device", "use bf16 or fp32")
    if isinstance(config, VlmConfig):
        _check_vlm(config, world())
    elif isinstance(config, ContrastiveConfig):
        if config.batch_size < max(2, world()):
            raise VlmkitError(f"--batch-size {config.batch_size} is too small", "give at least 2, and 1 a process")
        unfit = ("bf16", "fp16") if isinstance(config, LitConfig) else ("fp16",)
        if config.precision in unfit:
            what = "beside a locked image tower" if isinstance(config, LitConfig) else "for contrastive"
            raise VlmkitError(f"--precision {config.precision} is not {what}", "leave it out")


def _check_vlm(config: VlmConfig, world: int) -> None:
    on_cuda = config.device == "cuda"
    if config.batch_size % (config.accumulate * world):
        what = f"{config.batch_size} pictures cannot be divided into {config.accumulate * world} equal parts"
        raise VlmkitError(what, "change --batch-size or --accumulate")
    if config.start not in (None, "mini") and not os.path.isdir(config.start):
        raise VlmkitError(f"{config.start} is not a folder", "name one that vlmkit train made, or mini")
    if config.attention == "flex" and not on_cuda:
        raise VlmkitError("--attention flex requires a CUDA device to train on", "use --attention mask")
    if config.train_vision and config.cache_features:
        raise VlmkitError("features of a tower that is trained cannot be cached", "leave --cache-features out")
    if config.quantize:
        if config.device == "mps":
            raise VlmkitError("--quantize requires a CUDA device, or a CPU", "leave --quantize out")
        if config.stage is not Stage.ALIGN and not config.lora:
            raise VlmkitError("4-bit weights cannot be trained themselves", "add --lora R to train adapters (QLoRA)")
        check_installed("--quantize", "bitsandbytes", "bitsandbytes")
    _check_sharding(config)
    if config.stage is Stage.PREFER:
        check_installed("prefer", "vlmkit[prefer]", "trl")


def _check_sharding(config: VlmConfig) -> None:
    if config.offload and not config.fsdp:
        raise VlmkitError("--offload requires --fsdp", "add it, or leave --offload out")
    if not config.fsdp:
        return
    if "WORLD_SIZE" not in os.environ:
        raise VlmkitError("--fsdp requires torchrun", "use torchrun -m vlmkit, or leave it out")
    if config.quantize or config.computes_in() == "fp16":
        which = "--quantize" if config.quantize else "--precision fp16"
        raise VlmkitError(f"--fsdp and {which} exclude each other", "leave one of them out")
