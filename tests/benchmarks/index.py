"""Indexing and exact search against raw FAISS, in one run.

    python tests/benchmarks/index.py [ROWS] [DIM]

Rows are random unit vectors, 200,000 x 256 unless told; they go through `vlmkit index` as safetensors on a pipe.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from vlmkit.index import Index
from vlmkit.records import pack

VLMKIT = str(Path(sys.executable).with_name("vlmkit"))


def middle(work: Callable[[], object], rounds: int = 9) -> float:
    """Median seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    count, dim = (int(a) for a in (sys.argv[1:] + ["200000", "256"][len(sys.argv) - 1 :])[:2])
    vectors = np.random.default_rng(0).standard_normal((count, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as name:
        folder, blobs = Path(name) / "i", Path(name) / "v.safetensors"
        rows = ({"id": f"/photos/{i:08}.jpg", "model": "toy@0", "embedding": row} for i, row in enumerate(vectors))
        with blobs.open("wb") as file:
            file.writelines(pack(rows))
        start = time.perf_counter()
        subprocess.run([VLMKIT, "index", "-i", folder, blobs], check=True)
        took = time.perf_counter() - start
        print(f"vlmkit index: {count} x {dim} in {took:.1f} s, {count / took:.0f} records/s")

        def reopen() -> None:
            with Index(folder):
                pass

        print(f"opening: {1000 * middle(reopen):.1f} ms")
        raw = faiss.IndexFlatIP(dim)
        raw.add(vectors)
        with Index(folder) as index:
            ours, theirs = (
                middle(lambda: index.search(vectors[:1], 10)),
                middle(lambda: raw.search(vectors[:1], 10)),
            )
    print(
        f"exact query: vlmkit {1000 * ours:.1f} ms, raw FAISS IndexFlatIP {1000 * theirs:.1f} ms, {ours / theirs:.2f}x"
    )


if __name__ == "__main__":
    main()
