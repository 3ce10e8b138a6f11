"""What gpu.sh measures: one JSON object a line, the first names the device. Weights are random, pictures are noise.

Each run is a command of vlmkit in a process of its own with a limit of time; one that fails, or for which there is no
time, says so, and the exit code is 1. Rates are those of the second half of the steps. MFU is the share of the device's
dense bf16 speed that the model's own operations take (6 a trained weight and token, 4 a frozen one that a gradient
passes, 2 one that none does).
"""

import argparse
import importlib
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPImageProcessor, CLIPVisionConfig, PreTrainedTokenizerFast, Qwen2Config

BUDGET = 510  # seconds of all runs: nine minutes with the making of data
CPU = "--cpu"
LONGEST = 120  # seconds of a run
PRELOAD = "vlmkit.cli.train", "vlmkit.train.vlm.run", "vlmkit.train.contrastive.run", "peft", "matplotlib.figure"
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bf16, dense, of the SXM form
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = ("a photo of", "the small red car", "on grey road", "with tall green trees", "and one white dog")


@dataclass(frozen=True)
class Sizes:
    """Of pictures, towers and runs."""

    side: int
    patch: int
    vision: dict[str, int]
    text: dict[str, int]
    pictures: int
    steps: int
    batch: int
    contrastive: str
    contrastive_batch: int
    captions: tuple[int, ...]
    tokens: int


GPU = Sizes(
    336,
    14,
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    | {"num_key_value_heads": 2, "vocab_size": 151936},
    2048,
    24,
    64,
    "ViT-B-32",
    1024,
    (1, 8, 64),
    32,
)
TINY = Sizes(
    64,
    16,
    {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"num_key_value_heads": 1, "vocab_size": 512},
    32,
    4,
    8,
    "tiny",
    16,
    (1, 8),
    8,
)


def write_towers(folder: Path, sizes: Sizes) -> None:
    """Configurations without weights, from which vlmkit makes random ones, and a tokenizer of bytes."""
    CLIPVisionConfig(image_size=sizes.side, patch_size=sizes.patch, **sizes.vision).save_pretrained(folder / "vision")
    crop = {"height": sizes.side, "width": sizes.side}
    CLIPImageProcessor(size={"shortest_edge": sizes.side}, crop_size=crop).save_pretrained(folder / "vision")
    alphabet = ["<s>", "</s>", "<user>", "<assistant>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokens.add_special_tokens(alphabet[:4])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "llm")
    Qwen2Config(**sizes.text, tie_word_embeddings=True, eos_token_id=1).save_pretrained(folder / "llm")


def write_data(folder: Path, sizes: Sizes) -> None:
    """Pictures of noise with captions and questions, and the same as a webdataset shard."""
    draw = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    captions, questions = [], []
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for i in range(sizes.pictures):
            coarse = draw.integers(0, 256, (12, 12, 3), np.uint8)
            data = io.BytesIO()
            Image.fromarray(coarse).resize((sizes.side, sizes.side)).save(data, "JPEG")
            path = folder / f"pictures/{i:05}.jpg"
            path.write_bytes(data.getvalue())
            text = " ".join(draw.choice(WORDS, 4))
            captions.append({"id": str(i), "image": str(path), "captions": [text]})
            turns = [("human", "<image>\nwhat is this?"), ("gpt", text), ("human", "why?"), ("gpt", text)]
            said = [{"from": who, "value": value} for who, value in turns]
            questions.append({"id": str(i), "image": str(path), "conversations": said})
            for name, content in ((f"{i:05}.jpg", data.getvalue()), (f"{i:05}.txt", text.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    for name, rows in (("captions", captions), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def in_child(work: Callable[[], int | None], seconds: float, log: Path, **environment: str) -> str | None:
    """Run `work` in a process of its own, whose output is in `log`; returns what went wrong, if anything.

    On a CPU that process is forked from this one, which has imported all; CUDA needs a new one.
    """
    process = get_context("fork" if CPU in sys.argv else "spawn").Process(target=_child, args=(work, log, environment))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        return "stopped: out of time"
    said = log.with_suffix(".err").read_text().strip().splitlines()
    return f"exit code {process.exitcode}: {(said or [''])[-1]}" if process.exitcode else None


def _child(work: Callable[[], int | None], log: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    code = work()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


class Bench:
    """Runs in a folder, until `BUDGET` is spent."""

    def __init__(self, folder: Path, sizes: Sizes, device: str, name: str) -> None:
        self.folder, self.sizes, self.device, self.end = folder, sizes, device, time.monotonic() + BUDGET
        self.peak = next((speed for key, speed in PEAK.items() if key in name), None)
        self.failed = False

    def run(self, name: str, work: Callable[[], int | None], **environment: str) -> list[dict]:
        """The objects that `work` prints, none if it failed or there was no time, which is told."""
        left = self.end - time.monotonic()
        log = self.folder / f"{name}.log"
        error = in_child(work, min(left, LONGEST), log, **environment) if left > 15 else "left out: no time"
        if error:
            self.failed = True
            tell(name, error=error)
            return []
        return [json.loads(line) for line in log.with_suffix(".out").read_text().splitlines()]

    def train(self, name: str, stage: str, data: str, *flags: object, **environment: str) -> list[dict]:
        """The logged steps of a run, none if it failed or there was no time; its summary is printed."""
        words = ["train", stage, str(self.folder / data), "-o", str(self.folder / name), "-q", "--device", self.device]
        words += ["--log-every", "1", "--save-steps", "100000", *map(str, flags)]
        begun = time.monotonic()
        log = [row for row in self.run(name, partial(main_of_vlmkit, words), **environment) if "loss" in row]
        if log:
            half = log[len(log) // 2 :]
            rates = {key: round(mean(row[key] for row in half), 1) for key in half[0] if key.endswith("_per_s")}
            last = {key: log[-1][key] for key in ("memory_gb", "packing", "loss") if key in log[-1]}
            tell(name, **rates, **self.mfu(stage, rates), **last, seconds=round(time.monotonic() - begun, 1))
        return log

    def mfu(self, stage: str, rates: dict[str, float]) -> dict[str, float]:
        if self.peak is None or "tokens_per_s" not in rates:
            return {}
        language, tower = blocks(self.sizes.text), blocks(self.sizes.vision)
        patches = (self.sizes.side // self.sizes.patch) ** 2
        done = rates["tokens_per_s"] * language * (4 if stage == "align" else 6)
        return {"mfu": round((done + rates["samples_per_s"] * patches * tower * 2) / self.peak, 3)}

    def language_stages(self) -> None:
        sizes = self.sizes
        towers = "--vision", self.folder / "vision", "--llm", self.folder / "llm"
        common = *towers, "--batch-size", sizes.batch, "--steps", sizes.steps, "--pack-length", 2048
        plain = "--attention", "mask"
        self.train("align-mask", "align", "captions.jsonl", *common, *plain)
        self.train("align", "align", "captions.jsonl", *common)
        bf16 = "--precision", "bf16"
        self.train("instruct-autocast", "instruct", "questions.jsonl", *common, *bf16, "--no-masters", *plain)
        self.train("instruct-mask", "instruct", "questions.jsonl", *common, *bf16, *plain)
        self.train("instruct", "instruct", "questions.jsonl", *common, *bf16)
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29871"}
        self.train("instruct-fsdp", "instruct", "questions.jsonl", *common, *bf16, "--fsdp", **alone)
        if self.device == "cuda":
            self.train("align-compiled", "align", "captions.jsonl", *common, "--compile")
        else:
            tell("align-compiled", skipped="compiling for a CPU takes minutes")

    def equality(self) -> None:
        """Ten steps of tiny towers on the CPU and here, in float32 and in bf16: the largest relative difference."""
        flags = "--preset", "debug", "--steps", "10", "--seed", "3"
        cpu = self.losses("reference", *flags, "--device", "cpu")
        for precision in ("fp32", "bf16"):
            found = self.losses(f"{self.device}-{precision}", *flags, "--precision", precision)
            if cpu and found:
                apart = max(abs(a - b) / a for a, b in zip(cpu, found, strict=True))
                tell(f"equality-{precision}", difference=float(f"{apart:.2g}"))
                self.failed |= apart > {"fp32": 1e-3, "bf16": 0.05}[precision]

    def losses(self, name: str, *flags: str) -> list[float]:
        return [row["loss"] for row in self.train(name, "align", "few.jsonl", *flags)]

    def contrastive(self) -> None:
        flags = "--from", self.sizes.contrastive, "--batch-size", self.sizes.contrastive_batch
        if self.sizes.contrastive == "tiny":
            flags = "--preset", "debug"
        cores = os.cpu_count() or 1
        self.train("contrastive", "contrastive", "shard.tar", *flags, "--steps", self.sizes.steps, "--workers", cores)

    def use(self) -> None:
        """Embed and caption with what was trained, without the time of loading."""
        pictures = sorted((self.folder / "pictures").iterdir())
        for name, work in (("embed", embed_rate), ("caption", caption_rates)):
            made = "contrastive" if name == "embed" else "instruct"
            for row in self.run(name, partial(work, str(self.folder / made), pictures, self.device, self.sizes)):
                tell(**row)


def embed_rate(model: str, pictures: list[Path], device: str, sizes: Sizes) -> None:
    import vlmkit

    embedder = vlmkit.load_embedder(model, device=device)
    vlmkit.embed_images(pictures[:8], embedder)
    tell("embed", pictures_per_s=rate(len(pictures), lambda: vlmkit.embed_images(pictures, embedder)))


def caption_rates(model: str, pictures: list[Path], device: str, sizes: Sizes) -> None:
    import vlmkit
    from vlmkit.generate.pipeline import caption, caption_sampling
    from vlmkit.generate.questions import ChatSample
    from vlmkit.models.types import Sampling

    chat = vlmkit.load_chat_model(model, device=device)
    sampling = caption_sampling(chat, "normal", Sampling(0), sizes.tokens)

    def work(some: list[Path], size: int) -> int:
        """How many captions are empty: random weights may end at once."""
        samples = [ChatSample({"id": path.name}, [str(path)], n) for n, path in enumerate(some)]
        workers = os.cpu_count() or 1
        made = list(caption(samples, chat, sampling, length="normal", start="", batch_size=size, workers=workers))
        return sum(not isinstance(record, dict) for record in made)

    for size in sizes.captions:
        some = pictures[: max(8, 2 * size)]
        empty = work(some[:size], size)
        tell(f"caption-{size}", captions_per_s=rate(len(some), partial(work, some, size)), empty=empty)


def main_of_vlmkit(words: list[str]) -> int:
    from vlmkit.cli.app import main

    return main(words)


def blocks(shape: dict[str, int]) -> int:
    """The weights in the matrices of a transformer's blocks, without embeddings."""
    wide, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    shared = shape.get("num_key_value_heads", shape["num_attention_heads"]) / shape["num_attention_heads"]
    gates = 3 if "num_key_value_heads" in shape else 2
    return round(layers * wide * (2 * wide + 2 * wide * shared + gates * inner))


def rate(count: int, work: Any) -> float:
    begun = time.perf_counter()
    work()
    return round(count / (time.perf_counter() - begun), 1)


def tell_device() -> int:
    """The CUDA device; exit code 1 if there is none."""
    if not torch.cuda.is_available():
        return 1
    tell("device", device=torch.cuda.get_device_name())
    return 0


def tell(run: str, **found: Any) -> None:
    print(json.dumps({"run": run, **found}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(CPU, action="store_true", help="tiny sizes on the CPU")
    cpu = parser.parse_args().cpu
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for module in PRELOAD if cpu else ():
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="vlmkit-gpu-") as name:
        folder = Path(name)
        if not cpu and in_child(tell_device, 60, folder / "device.log"):
            sys.exit("gpu.sh: there is no CUDA device: use --cpu for a trial in tiny sizes")
        device = "CPU" if cpu else json.loads((folder / "device.out").read_text())["device"]
        tell("device", device=device, torch=torch.__version__, cores=os.cpu_count())
        sizes = TINY if cpu else GPU
        write_towers(folder, sizes)
        write_data(folder, sizes)
        lines = (folder / "captions.jsonl").read_text().splitlines(keepends=True)
        (folder / "few.jsonl").write_text("".join(lines[:16]))
        bench = Bench(folder, sizes, "cpu" if cpu else "cuda", device)
        bench.language_stages()
        bench.equality()
        bench.contrastive()
        bench.use()
        sys.exit(bench.failed)


if __name__ == "__main__":
    main()
