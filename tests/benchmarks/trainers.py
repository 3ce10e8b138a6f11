"""Samples a second and memory of `vlmkit train instruct`, of a plain script with transformers' Trainer, and of a loop.

    python tests/benchmarks/trainers.py [ROUNDS]

All three train the same LLaVA (random weights, from one folder) on the same conversations, one about each picture, in
float32 on one thread, with AdamW and the same batch; ROUNDS (3 unless given) times in turn, each in a process of its
own. The script pads to the longest sample of a batch, as the examples of transformers do; the loop, in the form of
nanoVLM's train.py, to one length. Lengths of replies are lognormal, as those of instruction data are, up to ten times
apart. Rates are those of all steps but the first, by the clock and by the time of the core, which other work on the
machine does not change: the ratio to the script is by that. Memory is what the peak of the process grew by, with the
model in it. The estimate is that of `vlmkit train --dry-run`.
"""

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu import Sizes, write_towers
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoProcessor, LlavaForConditionalGeneration, Trainer, TrainingArguments

from vlmkit.io.terminal import Failures
from vlmkit.models.llava.model import build, save
from vlmkit.train.config import load_config
from vlmkit.train.estimate import estimate
from vlmkit.train.settings import Stage
from vlmkit.train.vlm.run import train

BATCH, STEPS, RATE = 16, 5, 1e-4
SHAPE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
TOWER = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 3}
SIZES = Sizes(96, 16, TOWER, SHAPE | {"num_key_value_heads": 2, "vocab_size": 4096}, 0, 0, 0, "", 0, (), 0)
Row = dict[str, Any]


def write_data(folder: Path) -> list[Row]:
    draw = np.random.default_rng(0)
    rows = []
    for i in range(BATCH * STEPS):
        picture = Image.fromarray(draw.integers(0, 256, (12, 12, 3), np.uint8)).resize((96, 96))
        picture.save(folder / f"{i}.png")
        letters = int(np.clip(draw.lognormal(4.6, 0.8), 20, 800))
        reply = " ".join(draw.choice(["a", "red", "house", "beside", "trees"], letters))[:letters].strip()
        said = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": reply}]
        rows.append({"id": str(i), "image": str(folder / f"{i}.png"), "conversations": said})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


class Clock:
    """(seconds, seconds of a core, loss) of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float, float]] = []

    def tick(self, loss: float) -> None:
        self.steps.append((time.perf_counter(), time.process_time(), loss))

    def rates(self) -> tuple[float, float, float]:
        """Samples a second, samples a second of a core, the loss of the first step."""
        first, last = self.steps[0], self.steps[-1]
        done = BATCH * (len(self.steps) - 1)
        return done / (last[0] - first[0]), done / (last[1] - first[1]), first[2]


def config_of(folder: Path) -> Any:
    flags = {"start": str(folder / "model"), "batch_size": BATCH, "steps": STEPS, "lr": RATE, "projector_lr": RATE}
    flags |= {"warmup": 0.0, "schedule": "constant", "log_every": 1, "save_steps": 1000, "image_aspect": "crop"}
    flags |= {"data": [str(folder / "data.jsonl")], "out": folder / f"made-{os.getpid()}"}
    return load_config(Stage.INSTRUCT, flags)


def by_vlmkit(folder: Path, rows: list[Row], clock: Clock) -> None:
    def emit(record: dict[str, Any]) -> None:
        if "loss" in record:
            clock.tick(record["loss"])

    train(config_of(folder), emit, Failures(), lambda _: None, quiet=True)  # type: ignore[arg-type]


class Collator:
    """What a script does: the processor on each sample, labels on the reply, padding to `length` or the longest."""

    def __init__(self, folder: Path, length: int | None = None) -> None:
        self.processor, self.length = AutoProcessor.from_pretrained(folder / "model"), length

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        found = [self._sample(row) for row in rows]
        width = self.length or max(len(ids) for ids, _, _ in found)
        batch = {"input_ids": torch.zeros(len(rows), width, dtype=torch.long)}
        batch |= {"attention_mask": torch.zeros_like(batch["input_ids"])}
        batch |= {"labels": torch.full_like(batch["input_ids"], -100)}
        for i, (ids, asked, _) in enumerate(found):
            batch["input_ids"][i, : len(ids)] = ids
            batch["attention_mask"][i, : len(ids)] = 1
            batch["labels"][i, asked : len(ids)] = ids[asked:]
        return batch | {"pixel_values": torch.cat([pixels for _, _, pixels in found])}

    def _sample(self, row: Row) -> tuple[Tensor, int, Tensor]:
        question, reply = (turn["value"] for turn in row["conversations"])
        prompt = f"<user>{question}</s><assistant>"
        image = Image.open(row["image"]).convert("RGB")
        whole = self.processor(images=image, text=f"{prompt}{reply}</s>", return_tensors="pt")
        asked = self.processor(images=image, text=prompt, return_tensors="pt")["input_ids"].shape[1]
        return whole["input_ids"][0], asked, whole["pixel_values"]


def open_model(folder: Path) -> LlavaForConditionalGeneration:
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    return model


def by_trainer(folder: Path, rows: list[Row], clock: Clock) -> None:
    class Timed(Trainer):
        def training_step(self, *args: Any, **rest: Any) -> Tensor:
            loss = super().training_step(*args, **rest)
            clock.tick(float(loss))
            return loss

    settings = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Timed(open_model(folder), settings, Collator(folder), train_dataset=rows).train()  # type: ignore[arg-type]


def by_loop(folder: Path, rows: list[Row], clock: Clock) -> None:
    model = open_model(folder).train()
    collator = Collator(folder)
    collator.length = max(len(collator._sample(row)[0]) for row in rows)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, RATE, weight_decay=0, fused=True)
    for batch in DataLoader(rows, BATCH, shuffle=True, collate_fn=collator):  # type: ignore[arg-type]
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick(loss.item())


def measured(work: Callable[[Path, list[Row], Clock], None], folder: Path, rows: list[Row], out: Any) -> None:
    torch.set_num_threads(1)  # threads that wait for each other would measure what else runs here
    torch.manual_seed(0)
    clock, before = Clock(), peak_gb()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            work(folder, rows, clock)
        out.put((*clock.rates(), peak_gb() - before))
    except BaseException as error:
        out.put(repr(error))
        raise


def estimated(folder: Path, out: Any) -> None:
    torch.set_num_threads(1)
    out.put(estimate(config_of(folder), Failures(), quiet=True))


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    rounds = int((sys.argv[1:] or ["3"])[0])
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    kinds = {"vlmkit": by_vlmkit, "trainer": by_trainer, "loop": by_loop}
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory(prefix="vlmkit-trainers-") as name:
        folder = Path(name)
        write_towers(folder, SIZES)
        context = get_context("fork")
        make = context.Process(target=partial(make_model, folder))
        make.start()
        make.join()
        rows = write_data(folder)
        for _ in range(rounds):
            for kind, work in kinds.items():
                out = context.Queue()
                process = context.Process(target=measured, args=(work, folder, rows, out))
                process.start()
                if isinstance(made := out.get(timeout=600), str):
                    sys.exit(f"{kind}: {made}")
                print(kind, *(f"{number:.3f}" for number in made), file=sys.stderr)
                found[kind].append(made)
                process.join()
        out = context.Queue()
        context.Process(target=estimated, args=(folder, out)).start()
        guess = out.get(timeout=600)
    middle = {kind: [median(column) for column in zip(*some, strict=True)] for kind, some in found.items()}
    for kind, (rate, of_core, loss, memory) in middle.items():
        ratio = of_core / middle["trainer"][1]
        rates = {"samples_per_s": round(rate, 2), "samples_per_core_s": round(of_core, 2), "ratio": round(ratio, 2)}
        print(json.dumps({"by": kind, **rates, "first_loss": round(loss, 3), "memory_gb": round(memory, 3)}))
    print(json.dumps({"estimate": {name: guess[name] for name in ("tokens_per_step", "memory_gb", "seconds")}}))
    print(json.dumps({"load": round(os.getloadavg()[1], 1), "cores": os.cpu_count(), "rounds": rounds}))


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    save(build(str(folder / "vision"), str(folder / "llm"), "mlp"), folder / "model")


if __name__ == "__main__":
    main()
