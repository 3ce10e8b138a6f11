"""What LLaVA was trained on and measured with (Liu and others, 2023): conversations about pictures.

URLs of huggingface.co/datasets/liuhaotian, licences as on their cards; exact sizes and sums were not looked up. The
pictures of mix665k lie where LLaVA's own folder has them: coco/train2017, gqa/images, textvqa/train_images,
vg/VG_100K, vg/VG_100K_2. Those of OCR-VQA are at their publishers only, so its rows are left out.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vlmkit.datasets import coco, gqa, textvqa
from vlmkit.datasets.base import DataSet, File, Split
from vlmkit.io.records import Failed, Record, loads, read_jsonl

HUB = "https://huggingface.co/datasets/liuhaotian"
BENCH_REPO = "llava-bench-in-the-wild"
GENOME = "https://cs.stanford.edu/people/rak248/VG_100K_2"


def _records(root: Path, file: str, folder: str) -> Iterator[Record | Failed]:
    left_out = 0
    for number, row in enumerate(loads((root / file).read_bytes())):
        image = row.get("image")
        if image is not None and image.startswith("ocr_vqa/"):
            left_out += 1
            continue
        record = {"id": f"{row['id']}-{number}", "conversations": row["conversations"]}
        yield record if image is None else {**record, "image": f"{folder}{image}"}
    if left_out:
        yield Failed("ocr_vqa", None, f"{left_out:,} rows about pictures of OCR-VQA, which only their publishers have")


def _bench(root: Path) -> Iterator[Record | Failed]:
    """`answers` is what GPT-4 answered, which was given a description; `category` is conv, detail or complex."""
    folder = root / "llava-bench"
    with open(folder / "answers_gpt4.jsonl", "rb") as lines:
        answers = {row["question_id"]: row["text"] for row in read_jsonl(lines, "answers") if isinstance(row, dict)}
    with open(folder / "questions.jsonl", "rb") as lines:
        for row in read_jsonl(lines, "questions.jsonl"):
            yield (
                row
                if isinstance(row, Failed)
                else {
                    "id": f"llava-bench-{row['question_id']}",
                    "image": f"llava-bench/images/{row['image']}",
                    "question": row["text"],
                    "answers": [answers[row["question_id"]]],
                    "category": row["category"],
                }
            )


def _bench_picture(image: str) -> str:
    return f"{HUB}/{BENCH_REPO}/resolve/main/{image.removeprefix('llava-bench/')}"


def _file(repo: str, name: str, folder: str, unpack: str | None = None) -> File:
    return File(f"{HUB}/{repo}/resolve/main/{name}", f"{folder}/{name}", unpack=unpack)


def _conversations(file: File, folder: str, *pictures: File, **rest: Any) -> dict[str, Split]:
    return {"train": Split((file,), partial(_records, file=file.path, folder=folder), pictures, **rest)}


PRETRAIN = DataSet(
    name="llava-pretrain",
    what="558,000 pictures of LAION, CC and SBU with captions, as conversations of one turn",
    page=f"{HUB}/LLaVA-Pretrain",
    licence="other",
    terms="those of the sets whose pictures these are",
    used_by=("train align",),
    splits=_conversations(
        _file("LLaVA-Pretrain", "blip_laion_cc_sbu_558k.json", "llava-pretrain"),
        "llava-pretrain/images/",
        _file("LLaVA-Pretrain", "images.zip", "llava-pretrain", unpack="llava-pretrain/images"),
    ),
)
INSTRUCT = DataSet(
    name="llava-instruct-150k",
    what="conversations, descriptions and reasoning about COCO photographs, written by GPT-4",
    page=f"{HUB}/LLaVA-Instruct-150K",
    licence="CC BY 4.0",
    used_by=("train instruct",),
    splits=_conversations(
        _file("LLaVA-Instruct-150K", "llava_instruct_150k.json", "llava-instruct"),
        "coco/train2017/",
        coco.pictures("train2017"),
        single=coco.single,
    ),
)
MIX665K = DataSet(
    name="mix665k",
    what="the mixture of LLaVA 1.5: conversations and questions about pictures of COCO, GQA, TextVQA, Visual Genome",
    page=f"{HUB}/LLaVA-Instruct-150K",
    licence="CC BY 4.0",
    terms="those of the sets whose pictures these are",
    used_by=("train instruct",),
    splits=_conversations(
        _file("LLaVA-Instruct-150K", "llava_v1_5_mix665k.json", "llava-instruct"),
        "",
        coco.pictures("train2017"),
        gqa.PICTURES,
        textvqa.PICTURES,
        File(f"{GENOME}/images.zip", "vg/images.zip", unpack="vg"),
        File(f"{GENOME}/images2.zip", "vg/images2.zip", unpack="vg"),
    ),
)
BENCH = DataSet(
    name="llava-bench",
    what="60 questions about 24 pictures, with answers of GPT-4",
    page=f"{HUB}/{BENCH_REPO}",
    licence="Apache-2.0",
    used_by=("ask", "eval compare"),
    splits={
        "test": Split(
            (
                _file(BENCH_REPO, "questions.jsonl", "llava-bench"),
                _file(BENCH_REPO, "answers_gpt4.jsonl", "llava-bench"),
            ),
            _bench,
            single=_bench_picture,
        )
    },
)
