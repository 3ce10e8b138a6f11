"""Seconds and peak memory of `vlmkit eval`, whole processes.

    python tests/benchmarks/evaluate.py [ANSWERS] [PICTURES]

200,000 VQA answers with ten references each, made from a vocabulary of 3,000 answers (a third with punctuation,
articles or number words), scored and compared; 5,000 pictures with five captions each and vectors of 512 numbers.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vlmkit.io.records import encode_embedding

VLMKIT = str(Path(sys.executable).with_name("vlmkit"))
CAPTIONS, DIM, REFERENCES, WORDS = 5, 512, 10, 3000


def answers(count: int, seed: int) -> Iterator[dict]:
    """VQA records whose references are the same for every seed, and whose predictions are right half of the time."""
    fixed, free = np.random.default_rng(0), np.random.default_rng(seed)
    shapes = ["word{}", "word{}", "a word{} on the left", "The word-{}, really", "{}", "two word{}s."]
    words = [shapes[i % len(shapes)].format(i) for i in range(WORDS)]
    for i in range(count):
        kinds = fixed.integers(0, WORDS, 3)
        references = [words[kinds[j]] for j in fixed.choice(3, REFERENCES, p=[0.7, 0.2, 0.1])]
        answer = references[0] if free.random() < 0.5 else words[free.integers(0, WORDS)]
        yield {"id": f"q{i}", "question": f"what is number {i}?", "answers": references, "answer": answer}


def pictures(count: int) -> Iterator[dict]:
    """Records of pictures with their captions, and vectors of both that lie close to each other."""
    random = np.random.default_rng(0)
    for i in range(count):
        image = random.standard_normal(DIM)
        texts = image + 4 * random.standard_normal((CAPTIONS, DIM))
        vectors = [v / np.linalg.norm(v) for v in (image, *texts)]
        yield {
            "id": f"i{i}",
            "image": f"/i{i}.jpg",
            "model": "toy@0123456789ab",
            "captions": [f"caption {j} of {i}" for j in range(CAPTIONS)],
            "embedding": encode_embedding(vectors[0]),
            "caption_embeddings": [encode_embedding(v) for v in vectors[1:]],
        }


def write(path: Path, records: Iterator[dict]) -> Path:
    with path.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def run(what: str, *arguments: object) -> None:
    start = time.perf_counter()
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, VLMKIT, "eval", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True)
    took = time.perf_counter() - start
    print(f"{what}: {took:.1f} s, peak memory {int(done.stdout) / 1024:.0f} MB", flush=True)


def main() -> None:
    count, images = (int(a) for a in (sys.argv[1:] + ["200000", "5000"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as name:
        a, b = (write(Path(name) / f"{seed}.jsonl", answers(count, seed)) for seed in (1, 2))
        run(f"vqa, {count} answers", "vqa", a)
        run(f"vqa, {count} answers, by category", "vqa", a, "--by", "category")
        run(f"compare, 2 x {count} answers", "compare", a, b)
        run(f"retrieval, {images} x {images * CAPTIONS}", "retrieval", write(Path(name) / "p.jsonl", pictures(images)))
    print(f"this script: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
