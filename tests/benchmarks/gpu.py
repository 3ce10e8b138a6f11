"""What gpu.sh measures: one JSON object a line, the first names the device. Weights are random, pictures are noise.

Each run is a command of vlmkit with a limit of time; one that fails or is left out says so. Rates are those of the
second half of the steps. MFU is the share of the device's dense bf16 speed that the model's own operations take (6 a
trained weight and token, 4 a frozen one that a gradient passes, 2 one that none does).
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPImageProcessor, CLIPVisionConfig, PreTrainedTokenizerFast, Qwen2Config

BUDGET = 530  # seconds of all runs
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


class Bench:
    """Runs in a folder, until `BUDGET` is spent."""

    def __init__(self, folder: Path, sizes: Sizes, device: str) -> None:
        self.folder, self.sizes, self.device, self.end = folder, sizes, device, time.monotonic() + BUDGET
        self.peak = next((speed for name, speed in PEAK.items() if device == "cuda" and name in device_name()), None)

    def train(self, name: str, stage: str, data: str, *flags: object, launch: tuple[str, ...] = ()) -> list[dict]:
        """The logged steps of a run, none if it failed or there was no time; its summary is printed."""
        left = self.end - time.monotonic()
        if left < 30:
            tell(name, error="left out: no time")
            return []
        words = ["train", stage, str(self.folder / data), "-o", str(self.folder / name), "-q", "--device", self.device]
        words += ["--log-every", "1", "--save-steps", "100000", *map(str, flags)]
        begun = time.monotonic()
        how = launch or (sys.executable, "-m", "vlmkit")
        try:
            done = subprocess.run([*how, *words], capture_output=True, text=True, timeout=min(left, 150))
        except subprocess.TimeoutExpired:
            tell(name, error="stopped: out of time")
            return []
        if done.returncode:
            tell(name, error=(done.stderr.strip().splitlines() or ["failed"])[-1])
            return []
        log = [row for row in map(json.loads, done.stdout.splitlines()) if "loss" in row]
        half = log[len(log) // 2 :]
        rates = {key: round(mean(row[key] for row in half), 1) for key in half[0] if key.endswith("_per_s")}
        tell(
            name,
            **rates,
            **self.mfu(stage, rates),
            memory_gb=log[-1]["memory_gb"],
            loss=log[-1]["loss"],
            seconds=round(time.monotonic() - begun, 1),
        )
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
        self.train("instruct-mask", "instruct", "questions.jsonl", *common, *plain)
        self.train("instruct", "instruct", "questions.jsonl", *common)
        launch = sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "vlmkit"
        weights = "--fsdp", "--precision", "bf16"
        self.train("instruct-bf16", "instruct", "questions.jsonl", *common, *weights, launch=launch)
        if self.device == "cuda":
            self.train("align-compiled", "align", "captions.jsonl", *common, "--compile")
        else:
            tell("align-compiled", error="left out: compiling for a CPU takes minutes")

    def equality(self) -> None:
        """Ten steps of tiny towers on the CPU and here, in float32 and in bf16: the largest relative difference."""
        flags = "--preset", "debug", "--steps", "10", "--seed", "3"
        cpu = self.losses("cpu-fp32", *flags, "--device", "cpu")
        for precision in ("fp32", "bf16"):
            found = self.losses(f"{self.device}-{precision}", *flags, "--precision", precision)
            if cpu and found:
                apart = max(abs(a - b) / a for a, b in zip(cpu, found, strict=True))
                tell(f"equality-{precision}", difference=float(f"{apart:.2g}"))

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
        import vlmkit

        pictures = sorted((self.folder / "pictures").iterdir())
        if (self.folder / "contrastive/config.json").exists() or list(self.folder.glob("contrastive/*.safetensors")):
            model = vlmkit.load_embedder(str(self.folder / "contrastive"), device=self.device)
            vlmkit.embed_images(pictures[:8], model)
            tell("embed", pictures_per_s=rate(len(pictures), lambda: vlmkit.embed_images(pictures, model)))
        trained = next((f for f in ("instruct", "instruct-mask") if (self.folder / f / "config.json").exists()), None)
        if trained is None or self.end < time.monotonic():
            return tell("caption", error="left out: no time, or no model")
        chat: Any = vlmkit.load_chat_model(str(self.folder / trained), device=self.device)
        for size in self.sizes.captions:
            some = pictures[: max(8, 2 * size)]
            made = partial(vlmkit.caption_images, some, chat, batch_size=size, max_tokens=32)
            tell(f"caption-{size}", captions_per_s=rate(len(some), lambda made=made: list(made())))


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


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def tell(name: str, **found: Any) -> None:
    print(json.dumps({"run": name, **found}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU")
    cpu = parser.parse_args().cpu
    if not cpu and not torch.cuda.is_available():
        sys.exit("gpu.sh: there is no CUDA device: use --cpu for a trial in tiny sizes")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sizes = TINY if cpu else GPU
    tell("device", device=device_name() if not cpu else "CPU", torch=torch.__version__, cores=os.cpu_count())
    with tempfile.TemporaryDirectory(prefix="vlmkit-gpu-") as name:
        folder = Path(name)
        write_towers(folder, sizes)
        write_data(folder, sizes)
        lines = (folder / "captions.jsonl").read_text().splitlines(keepends=True)
        (folder / "few.jsonl").write_text("".join(lines[:16]))
        bench = Bench(folder, sizes, "cpu" if cpu else "cuda")
        bench.language_stages()
        bench.equality()
        bench.contrastive()
        bench.use()


if __name__ == "__main__":
    main()
