"""What one run of contrastive training does."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ContrastiveConfig:
    """The same configuration on the same machine makes the same bytes.

    The model is `start`, or one of two towers, `vision` and `text`, with new heads.
    """

    data: list[str]
    out: Path
    start: str | None = None  # a dual encoder of open_clip or transformers, with weights or without, or "tiny"
    vision: str | None = None  # a timm model, or a folder in timm's form
    text: str | None = None  # a Hugging Face text encoder, or a folder of one
    lock: str = "none"  # image, text or none: the tower that is not trained
    loss: str = "infonce"  # or siglip
    val: str | float | None = None  # other data, or the share of `data` to hold out
    images: str | None = None  # folder of relative picture names
    limit: int | None = None  # at most so many pictures of `data`, and of `val`
    epochs: float = 10
    steps: int | None = None  # so many, whatever `epochs` says
    batch_size: int = 256  # pictures, over all processes
    accumulate: int = 1  # parts that a process computes its pictures in
    captions: int = 1  # of each picture in a batch
    views: int = 1  # 1: the picture; 2: and its mirror image; more: and random crops
    dim: int = 256  # of the space, for two towers with new heads
    lr: float = 5e-4
    weight_decay: float = 0.2
    warmup: float = 0.1  # share of all steps
    clip: float = 1.0  # of the gradient's norm
    save_steps: int | None = None  # a tenth of the run unless told
    keep: int = 2
    best: bool = True  # end with the weights of the best validation, not with the last ones
    patience: int | None = None  # validations without improvement before stopping
    log_every: int = 10
    report_to: str | None = None
    seed: int = 0
    device: str = "cpu"
    workers: int = 2


@dataclass(frozen=True, slots=True)
class LitConfig(ContrastiveConfig):
    """Two towers, the image tower locked: it runs once over every picture, training reads its features from memory."""

    lock: str = "image"
    epochs: float = 40
    batch_size: int = 512
    captions: int = 5
    views: int = 4
    lr: float = 1e-3  # of the heads
    weight_decay: float = 1.0
    text_epochs: int = 1  # in how many of the last epochs the text tower is trained too; before, the heads alone
    text_lr: float = 3e-5  # of the text tower
    text_layers: int = 1  # how many of its top layers are trained
    dropout: float = 0.3  # in the head of the image tower
    feature_dropout: float = 0.35  # of the image tower's features
