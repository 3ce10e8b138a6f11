"""The table of memory and hours in vlmkit-training(7), by the estimate of `vlmkit train --dry-run`."""

from dataclasses import dataclass

from vlmkit.train.cost import EFFICIENCY, Sizes, flops, memory

PEAK = 989e12  # operations a second of an H100, bf16, dense
ONCE = 16_384  # tokens, the default of --max-tokens-per-batch
IMAGE = 576  # patches of a picture, 1,024 wide
TOWER = 304_000_000
GPUS = 1, 8, 64


@dataclass(frozen=True, slots=True)
class Language:
    """A language model of the form of Qwen2.5."""

    layers: int
    width: int
    inner: int
    keys: float  # the share of heads that have keys of their own
    tables: int  # embeddings and head: 1 where they are the same

    @property
    def block(self) -> int:
        return round(self.width * (self.width * (2 + 2 * self.keys) + 3 * self.inner))


@dataclass(frozen=True, slots=True)
class Work:
    """A stage on its data."""

    samples: int
    tokens: int
    labels: int
    batch: int


VOCABULARY = 152_064
MODELS = {
    "0.5B": Language(24, 896, 4864, 2 / 14, 1),
    "3B": Language(36, 2048, 11008, 2 / 16, 1),
    "7B": Language(28, 3584, 18944, 4 / 28, 2),
}
STAGES = {"align": Work(558_128, 600, 20, 256), "instruct": Work(665_298, 1000, 250, 128)}


def table() -> str:
    """The table as Markdown."""
    lines = [
        "| stage, language model | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in GPUS) + " |",
        "|---|" + "---|" * 3,
    ]
    for stage, work in STAGES.items():
        for name, model in MODELS.items():
            lines.append(f"| {stage}, {name} | {' | '.join(_cell(stage, work, model, gpus) for gpus in GPUS)} |")
    return "\n".join(lines) + "\n"


def _cell(stage: str, work: Work, model: Language, gpus: int) -> str:
    blocks, embeddings = model.layers * model.block, VOCABULARY * model.width
    projector = 1024 * model.width + model.width**2
    language, whole = blocks + embeddings, blocks + model.tables * embeddings
    trained = projector + (whole if stage == "instruct" else 0)
    frozen = TOWER + (0 if stage == "instruct" else whole)
    sizes = Sizes(trained, 2 * frozen, language, TOWER, model.layers, model.width, model.inner, VOCABULARY)
    once = min(ONCE, work.batch // gpus * work.tokens)
    labels = once * work.labels // work.tokens
    how = {"masters": stage == "instruct", "shards": gpus}
    plain, again = (memory(sizes, once, labels, 2, checkpointing=c, **how) / 2**30 for c in (False, True))
    patches = work.samples * IMAGE
    hours = flops(sizes, work.samples * work.tokens, patches) / (gpus * EFFICIENCY * PEAK) / 3600
    return f"{plain:.0f} or {again:.0f}, {hours:.2g} h"
