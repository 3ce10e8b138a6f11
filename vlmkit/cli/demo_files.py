"""What the examples of the manual are about, beside the photographs: captions, labels and answers of models."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from vlmkit.io.files import atomic_write
from vlmkit.io.records import Record, dumps

COLORS = ("red", "green", "blue", "black", "white", "yellow")
FIELDS = 64  # pictures of one colour in shard.tar
# Photograph, question, the answer of most people, and what two models said.
ANSWERS = (
    ("coffee.png", "what color is the cup", "white", "white", "white"),
    ("chelsea.png", "is this a cat", "yes", "yes", "no"),
    ("rocket.jpg", "what is on the launch pad", "rocket", "a rocket", "rocket"),
    ("coins.png", "how many coins are there", "24", "12", "24"),
    ("chelsea.png", "what color is the cat", "orange", "brown", "white"),
    ("page.png", "what does the first word say", "region", "Region", ""),
)
CAPTIONS = {"coffee.png": "a cup of coffee", "chelsea.png": "a cat looks up", "rocket.jpg": "a rocket at night"}


def write_files(folder: Path) -> None:
    """Write them into `folder`, where `photos/` is: the same bytes each time."""
    questions: list[Record] = [
        {"id": f"q{i}", "image": f"photos/{name}", "question": question, "answers": [answer] * 7 + ["nothing"] * 3}
        for i, (name, question, answer, *_) in enumerate(ANSWERS)
    ]
    for number, name in ((3, "answers.jsonl"), (4, "other.jsonl")):
        said = (row[number] for row in ANSWERS)
        _write(folder / name, (q | {"answer": a} for q, a in zip(questions, said, strict=True)))
    captioned: list[Record] = [
        {"id": name, "image": f"photos/{name}", "caption": text, "captions": [f"{text}.", "a photo"]}
        for name, text in CAPTIONS.items()
    ]
    _write(folder / "captions.jsonl", captioned)
    results = [{"question_id": i, "answer": row[3]} for i, row in enumerate(ANSWERS)]
    truth = [
        {
            "question_id": i,
            "image_id": i,
            "answers": [{"answer": a, "answer_id": n} for n, a in enumerate(question["answers"])],
        }
        for i, question in enumerate(questions)
    ]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "annotations.json").write_text(json.dumps({"annotations": truth}))
    (folder / "labels.txt").write_text("cat\ncoffee\nrocket\n")
    with atomic_write(folder / "shard.tar") as file:
        _write_shard(file)


def _write(path: Path, rows: Iterable[Record]) -> None:
    path.write_bytes(b"".join(map(dumps, rows)))


def _write_shard(file: IO[bytes]) -> None:
    """A webdataset shard of pictures of one colour with captions."""
    from PIL import Image

    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(FIELDS):
            color = COLORS[number % len(COLORS)]
            picture = io.BytesIO()
            Image.new("RGB", (64 + number, 64), color).save(picture, "JPEG")
            caption = f"a {color} field, number {number}".encode()
            for suffix, data in ((".jpg", picture.getvalue()), (".txt", caption)):
                member = tarfile.TarInfo(f"{number:04}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
