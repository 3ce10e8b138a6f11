"""Predictions to score, made by hand."""

from pathlib import Path

import numpy as np
from helpers import jsonl, records

TEN = ["red"] * 7 + ["dark red"] * 3


def question(number: int, answer: str, **fields: object) -> dict:
    return {"id": f"q{number}", "question": "what color is it", "answers": TEN, "answer": answer, **fields}


def by_metric(output: bytes) -> dict[str, dict]:
    return {record["metric"]: record for record in records(output) if "category" not in record}


def write(path: Path, *rows: dict) -> Path:
    path.write_bytes(jsonl(*rows))
    return path


def answers(*given: str, **fields: object) -> list[dict]:
    return [question(i, answer, **fields) for i, answer in enumerate(given)]


def retrieval_rows(similarity: list[list[float]], owner: list[int]) -> list[dict]:
    """Records whose cosines are ordered as `similarity` (captions x images): images are axes, captions lie between."""
    images = np.eye(len(similarity[0]) + 1)[:-1]
    rows = []
    for i, image in enumerate(images):
        own = [row for row, o in zip(similarity, owner, strict=True) if o == i]
        vectors = []
        for row in own:
            vector = np.append(np.array(row) / len(row), 0)
            vector[-1] = np.sqrt(1 - (vector**2).sum())  # so that no normalisation changes the order of captions
            vectors.append(vector.tolist())
        captions = [f"caption {n} of {i}" for n in range(len(own))]
        rows.append({"id": f"i{i}", "captions": captions, "embedding": image.tolist(), "caption_embeddings": vectors})
    return rows
