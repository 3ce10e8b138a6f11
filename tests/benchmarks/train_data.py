"""Memory and rates of what `train instruct` does before and beside the model, on made rows.

    python tests/benchmarks/train_data.py [ROWS]…

For each number of ROWS (10,000 and 1,000,000 unless given) a new process writes as many LLaVA conversations of two
turns, four about each picture, then reads them (the first pass), counts their tokens, reads and counts again from what
was kept, and goes through 100 micro-batches of 8 groups as the loader's workers do, without decoding. Prints one line
each: seconds, and how far the peak of resident memory is above that before. Then the same of `train contrastive`: the
first pass over as many captions, the batches of an epoch, 100 of them read.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlmkit.io.terminal import Failures
from vlmkit.models.chat.templates import TEMPLATES
from vlmkit.train.contrastive.sampler import batches, read_pictures
from vlmkit.train.data.dataset import read_data
from vlmkit.train.data.samples import parse_dialogues
from vlmkit.train.vlm.batches import Order, OrderedSampler
from vlmkit.train.vlm.collator import GroupDataset
from vlmkit.train.vlm.groups import tokenized_groups
from vlmkit.train.vlm.packing import Packer
from vlmkit.train.vlm.tokenize import Chat

ABOUT = 4  # rows about each picture, as in VQA
IMAGE_TOKENS = 576
SIZES = 10_000, 1_000_000


def main() -> None:
    kinds = {"--language": measure, "--contrastive": measure_contrastive}
    if (kind := kinds.get("".join(sys.argv[1:2]))) is not None:
        with tempfile.TemporaryDirectory() as folder:
            kind(Path(folder), int(sys.argv[2]))
        return
    for name in kinds:
        for size in map(int, sys.argv[1:] or map(str, SIZES)):
            subprocess.run([sys.executable, __file__, name, str(size)], check=True)


def measure(folder: Path, count: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as training sets it
    data = write(folder, count)
    encode = Chat(tokenizer())
    packer = Packer(encode.image, IMAGE_TOKENS, 0, 2304)
    steps: dict[str, float] = {}
    started = peak()
    for name in ("", " again"):
        start = time.perf_counter()
        rows = read_data([str(data)], parse_dialogues, failures=Failures(), workers=2)
        steps["read" + name] = time.perf_counter() - start
        start = time.perf_counter()
        groups = tokenized_groups(rows, encode, packer, 2048, 2, Failures(), quiet=True)
        steps["count" + name] = time.perf_counter() - start
    blank = SimpleNamespace()
    loader = GroupDataset(groups, lambda *_: blank, 1, 0)
    start = time.perf_counter()
    refs = Order(partial(rows.epoch_groups, 0), 800)
    for (some,) in OrderedSampler(refs, 8):
        for ref in some:
            loader.read(ref)
    steps["100 micro-batches"] = time.perf_counter() - start
    tell(f"{count} rows", steps, started)


def measure_contrastive(folder: Path, count: int) -> None:
    data = write(folder, count)
    steps: dict[str, float] = {}
    started = peak()
    for name in ("", " again"):
        start = time.perf_counter()
        pictures: Any = read_pictures([str(data)], Failures(), workers=2)
        steps["read" + name] = time.perf_counter() - start
    start = time.perf_counter()
    made = list(batches(pictures.rows.counts, 512, 1, 1, 0, 1, pictures.times(0)))
    steps["batches of an epoch"] = time.perf_counter() - start
    start = time.perf_counter()
    for batch in made[:100]:
        for number in batch.pictures:
            pictures.rows[int(number)]
    steps[f"{len(made[:100])} of 512 pictures"] = time.perf_counter() - start
    tell(f"{count} captions of {len(pictures.rows)} pictures", steps, started)


def tell(what: str, steps: dict[str, float], started: float) -> None:
    took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in steps.items())
    print(f"{what}: {took}; {peak() - started:.0f} MB more than the {started:.0f} MB before", flush=True)


def write(folder: Path, count: int) -> Path:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    pictures = -(-count // ABOUT)
    for number in range(pictures):
        (folder / f"{number}.png").write_bytes(picture.getvalue())
    with open(folder / "rows.jsonl", "w") as file:
        for number in range(count):
            said = [("human", f"<image>\nwhat is number {number} here?"), ("gpt", f"it is {number}, a field of colour")]
            said += [("human", "and is it large?"), ("gpt", "no, it has eight by eight pixels")]
            conversation = [{"from": who, "value": text} for who, text in said]
            row = {"id": str(number), "image": f"{number % pictures}.png", "conversations": conversation}
            row["captions"] = [f"a field of colour, number {number}"]
            file.write(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


def tokenizer() -> Any:
    vocabulary = {token: i for i, token in enumerate(["</s>", "<image>", *pre_tokenizers.ByteLevel.alphabet()])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", extra_special_tokens=["<image>"])
    words.chat_template = TEMPLATES["chatml"]
    return SimpleNamespace(
        processor=SimpleNamespace(tokenizer=words), model=SimpleNamespace(config=SimpleNamespace(image_token_index=1))
    )


def peak() -> float:
    """MB of resident memory, the most so far, of this process and of those that counted."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


if __name__ == "__main__":
    main()
