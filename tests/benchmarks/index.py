"""Indexing, opening and searching against raw FAISS, in one run.

    python tests/benchmarks/index.py [ROWS] [DIM] [TYPE]...

Rows are seeded unit vectors around 1,000 centres, 1,000,000 x 256 by default; they go through `vlmkit index` as a
safetensors file. Queries are new draws. Each TYPE (ivf, hnsw, ivfpq by default) is built from the stored vectors, and
held against FAISS's own index of the same file, opened the same way, with the same nprobe or efSearch.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import faiss
import numpy as np

from vlmkit.index import Index
from vlmkit.index.store import ann_path
from vlmkit.index.types.faiss_index import FaissIndex
from vlmkit.io.blobs import pack
from vlmkit.io.records import Record

VLMKIT = str(Path(sys.executable).with_name("vlmkit"))
BLOCK = 50_000
QUERIES = 200


def vectors(count: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((1000, dim), np.float32)
    found = centres[rng.integers(1000, size=count)] + rng.standard_normal((count, dim), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def rows(count: int, dim: int) -> Iterator[Record]:
    for start in range(0, count, BLOCK):
        for i, row in enumerate(vectors(min(BLOCK, count - start), dim, start), start):
            path = f"/photos/{i // 1000:04}/{i:08}.jpg"
            facts = {"mtime": 1.7e9 + i, "bytes": 200_000 + i, "width": 4000, "height": 3000}
            yield {"id": path, "image": path, **facts, "model": "toy@0", "embedding": row}


def run(*arguments: object) -> tuple[float, float]:
    """Seconds and peak memory in MB of one `vlmkit index`."""
    start = time.perf_counter()
    process = subprocess.Popen([VLMKIT, "index", *map(str, arguments)], stdin=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def both(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 30) -> tuple[float, float]:
    """Median seconds of two things, each measured in turn, so that other work on the machine meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for work, taken in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def compare(name: str, index: Index, raw: faiss.Index, queries: np.ndarray) -> None:
    """Each query on its own; never the same one in turn, or the second would find the vectors in the CPU's cache."""
    index.search(queries, 10)
    raw.search(queries, 10)  # both have touched the pages that they will need
    ours, theirs = both(
        _one_by_one(lambda query: index.search(query, 10), queries),
        _one_by_one(lambda query: raw.search(query, 10), np.roll(queries, QUERIES // 2, 0)),
        QUERIES,
    )
    print(f"{name} query: vlmkit {1000 * ours:.2f} ms, raw FAISS {1000 * theirs:.2f} ms, {ours / theirs:.2f}x")


def _one_by_one(search: Callable[[np.ndarray], object], queries: np.ndarray) -> Callable[[], object]:
    rest = cycle(queries[:, None])
    return lambda: search(next(rest))


def main() -> None:
    given = sys.argv[1:]
    count, dim = (int(text) for text in [*given[:2], *["1000000", "256"][len(given[:2]) :]])
    queries = vectors(QUERIES, dim, 7)
    with tempfile.TemporaryDirectory() as name:
        folder, blobs = Path(name) / "i", Path(name) / "v.safetensors"
        with blobs.open("wb") as file:
            file.writelines(pack(rows(count, dim)))
        took, peak = run("-i", folder, "--type", "flat", blobs)
        print(f"vlmkit index: {count} x {dim} in {took:.1f} s, {count / took:.0f} records/s, {peak:.0f} MB")
        blobs.unlink()

        def reopen() -> None:
            with Index(folder):
                pass

        print(f"opening: {1000 * both(reopen, reopen)[0]:.1f} ms")
        with Index(folder) as index:
            raw = faiss.IndexFlatIP(dim)
            for start in range(0, count, BLOCK):
                raw.add(index.vectors[start : start + BLOCK].astype(np.float32))
            compare("flat", index, raw, queries)
            truth = [[hit.slot for hit in hits] for hits in index.search(queries, 10)]
        del raw
        for kind in given[2:] or ["ivf", "hnsw", "ivfpq"]:
            took, peak = run("-i", folder, "--type", kind)
            with Index(folder) as index:
                assert index.ann
                built = index.ann.info
                found = [[hit.slot for hit in hits] for hits in index.search(queries, 10)]
                recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth, found, strict=True)])
                size = built.size / (1 << 20)
                setting = f"{built.factory}, effort {built.search_effort}"
                print(f"{kind} ({setting}): {took:.1f} s, {peak:.0f} MB, file {size:.0f} MB")
                opening = 1000 * both(reopen, reopen)[0]
                print(f"{kind} recall@10: {recall:.4f}; at building {built.recall:.4f}; {opening:.1f} ms to open")
                raw = faiss.read_index(str(ann_path(folder, built.number)), faiss.IO_FLAG_MMAP_IFC)
                FaissIndex(raw, built.factory).set_search_effort(built.search_effort)
                compare(kind, index, raw, queries)


if __name__ == "__main__":
    main()
