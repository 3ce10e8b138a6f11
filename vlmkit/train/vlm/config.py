"""What one run of align, instruct or prefer does."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class VlmConfig:
    """The same configuration on the same machine makes the same bytes."""

    stage: str  # align, instruct or prefer
    data: list[str]
    out: Path
    vision: str | None = None  # a CLIP or SigLIP tower, "mini", "patches"; None with `start`, or for a tiny one
    llm: str | None = None
    connector: str | None = None  # mlp unless told
    start: str | None = None  # a folder that an earlier stage made
    val: str | float | None = None
    images: str | None = None
    limit: int | None = None  # at most so many rows of each DATA
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 32  # pictures, with all that is said about them, over all processes
    accumulate: int = 1  # micro-batches a step
    lr: float = 2e-5  # of the language model
    projector_lr: float = 1e-3
    weight_decay: float = 0.0
    beta2: float = 0.999
    warmup: float = 0.03  # share of all steps
    clip: float = 1.0  # of the gradient's norm
    dropout: float = 0.0  # of features, embeddings, and what each attention and MLP block adds
    smoothing: float = 0.0  # of the labels
    weigh: str = "tokens"  # what weighs the same: tokens or replies; root: between, by 1 / sqrt(tokens of the reply)
    views: int = 1  # of each picture; 2: its mirror image too (captions without left and right); more: random crops
    aspect: str = "crop"  # or pad: to a square, with the mean colour (CLIP towers)
    lora: int | None = None
    quantize: str | None = None
    beta: float = 0.1  # of DPO
    max_length: int = 2048  # tokens of a sample; the text of longer ones is cut
    pack_length: int = 1024  # tokens of a row
    cache_features: bool = False  # of the frozen vision tower, once, on disk
    checkpointing: bool = False  # activations computed again in the backward pass
    save_steps: int | None = None  # a tenth of the run unless told
    keep: int = 2
    patience: int | None = None  # evaluations without improvement before stopping
    log_every: int = 10
    report_to: str | None = None
    fsdp: bool = False
    seed: int = 0
    device: str = "cpu"
    workers: int = 2
