"""An index at scale: built, opened, searched, updated; seconds, memory and recall@10, against raw FAISS.

    python tests/benchmarks/scale.py [ROWS] [DIM] [TYPE] [FOLDER]

10,000,000 x 256 of the type `auto` by default, in a temporary folder (inside FOLDER, where one is named). Rows and
queries are those of index.py. Raw FAISS reads the same stored vectors, builds the same factory string in a process of
its own, and is searched with the same nprobe or efSearch, without a look at the stored vectors. The truth is exact
search over the stored vectors. Disk: 0.8 kB a row for the input, as much for the index, and the approximate index.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
from index import BLOCK, QUERIES, VLMKIT, run, vectors

from vlmkit.index import Index, VectorIndex
from vlmkit.index.opening import open_index
from vlmkit.index.types import flat
from vlmkit.io.blobs import pack
from vlmkit.io.records import Record

K = 10
SHARE = 100  # an update is one row of so many: half of it new, half in place of others
TRAINED = 64  # vectors for each list of an IVF


def rows(numbers: range, dim: int, seed: int) -> Iterator[Record]:
    for start in range(numbers.start, numbers.stop, BLOCK):
        block = range(start, min(start + BLOCK, numbers.stop))
        for i, row in zip(block, vectors(len(block), dim, seed + start), strict=True):
            path = f"/photos/{i // 1000:05}/{i:08}.jpg"
            facts = {"mtime": 1.7e9 + i, "bytes": 200_000 + i, "width": 4000, "height": 3000}
            yield {"id": path, "image": path, **facts, "model": "toy@0", "embedding": row}


def written(file: Path, made: Iterator[Record]) -> Path:
    with file.open("wb") as out:
        out.writelines(pack(made))
    return file


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)


def told(what: str, measured: tuple[float, float], more: str = "") -> None:
    print(f"{what}: {measured[0]:.1f} s, {measured[1]:.0f} MB{more}", flush=True)


def megabytes(folder: Path, pattern: str = "*") -> float:
    return sum(file.stat().st_size for file in folder.glob(pattern)) / (1 << 20)


def truth_of(index: Index, queries: np.ndarray) -> np.ndarray:
    live = index.live()
    return flat.search_rows(index.vectors, queries, K, live)[1]


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([np.isin(row, near).mean() for row, near in zip(truth, found, strict=True)]))


def searched(what: str, index: VectorIndex, queries: np.ndarray, truth: np.ndarray | None = None) -> None:
    """Each query on its own, the second time; the first one brings the pages into memory."""
    for turn in ("first", "again"):
        taken, found = [], []
        for query in queries[:, None]:
            start = time.perf_counter()
            (hits,) = index.search(query, K)
            taken.append(1000 * (time.perf_counter() - start))
            found.append([hit.slot for hit in hits])
        right = "" if truth is None else f", recall@10 {recall(np.array(found), truth):.4f}"
        print(f"{what}, {turn}: {statistics.median(taken):.2f} ms a query, {max(taken):.0f} at most{right}", flush=True)


def raw(asked: dict) -> None:
    """Build, write, map and search an index of FAISS as a user would; prints seconds and what was found."""
    stored = np.memmap(asked["vectors"], "<f2", "r", shape=(asked["rows"], asked["dim"]))
    start = time.perf_counter()
    index = faiss.index_factory(asked["dim"], asked["factory"], faiss.METRIC_INNER_PRODUCT)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        count = min(len(stored), TRAINED * max(ivf.nlist, 1024))
        some = np.sort(np.random.default_rng(0).choice(len(stored), count, replace=False))
        index.train(stored[some].astype(np.float32))
    for first in range(0, len(stored), BLOCK):
        index.add(stored[first : first + BLOCK].astype(np.float32))
    faiss.write_index(index, asked["file"])
    built = time.perf_counter() - start
    index = faiss.read_index(asked["file"], faiss.IO_FLAG_MMAP_IFC)
    if asked["effort"]:
        name = "nprobe" if ivf is not None else "efSearch"
        faiss.ParameterSpace().set_index_parameter(index, name, asked["effort"])
    queries = np.load(asked["queries"])
    index.search(queries, K)
    taken, found = [], []
    for query in queries[:, None]:
        start = time.perf_counter()
        found.append(index.search(query, K)[1][0].tolist())
        taken.append(1000 * (time.perf_counter() - start))
    with open("/proc/self/status") as status:
        (peak,) = (int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"built": built, "ms": statistics.median(taken), "found": found, "peak": peak}))


def against_raw(index: Index, folder: Path, queries: np.ndarray, truth: np.ndarray) -> None:
    np.save(folder / "queries.npy", queries)
    factory, effort = (index.ann.info.factory, index.ann.info.search_effort) if index.ann else ("Flat", 0)
    asked = {
        "vectors": str(next(index.folder.glob("vectors-*.f16"))),
        "rows": index.state.slots,
        "dim": index.dim,
        "factory": factory,
        "effort": effort,
        "queries": str(folder / "queries.npy"),
        "file": str(folder / "raw.faiss"),
    }
    done = subprocess.run([sys.executable, __file__, json.dumps(asked)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    right = recall(np.array(found["found"]), truth)
    told(f"raw FAISS builds {factory}", (found["built"], found["peak"]))
    print(f"raw FAISS: {found['ms']:.2f} ms a query, recall@10 {right:.4f}", flush=True)
    (folder / "raw.faiss").unlink()


def process(*arguments: object) -> None:
    """A whole `vlmkit search`, after which nothing stays in memory."""
    start = time.perf_counter()
    subprocess.run([VLMKIT, "search", *map(str, arguments)], stdout=subprocess.DEVNULL, check=True)
    print(f"a whole vlmkit search: {time.perf_counter() - start:.2f} s", flush=True)


def main(count: int, dim: int, kind: str, place: str | None) -> None:
    queries = vectors(QUERIES, dim, 7)
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        place_of = folder / "i.index"
        with timed("input made"):
            blobs = written(folder / "rows.safetensors", rows(range(count), dim, 0))
        told("vlmkit index --type flat", run("-i", place_of, "--type", "flat", blobs), f"; {count:,} x {dim}")
        blobs.unlink()
        told(f"vlmkit index --type {kind}", run("-i", place_of, "--type", kind))
        print(f"on the disk: {megabytes(place_of):.0f} MB, {megabytes(place_of, 'ann*'):.0f} of it approximate")
        process("-i", place_of, "--like", "/photos/00000/00000005.jpg")
        with Index(place_of) as index:
            print(f"type: {index.info()['reason']}")
            with timed("the truth"):
                truth = truth_of(index, queries)
            searched("search", index, queries, truth)
            against_raw(index, folder, queries, truth)
        share = max(2, count // SHARE)
        changed = range(count - share // 2, count + share // 2)
        blobs = written(folder / "more.safetensors", rows(changed, dim, 1_000_003))
        told(f"update by {share:,} rows", run("-i", place_of, blobs))
        told("the same rows as an index of their own", run("-i", folder / "more.index", blobs))
        gone = [word for i in range(1000) for word in ("--remove", f"/photos/{i // 1000:05}/{i:08}.jpg")]
        told("1,000 rows removed", run("-i", place_of, *gone))
        with Index(place_of) as index:
            searched("search after the update", index, queries, truth_of(index, queries))
        with open_index([str(place_of), str(folder / "more.index")]) as parts:
            searched("both indexes as one", parts, queries)


if __name__ == "__main__":
    given = sys.argv[1:]
    if given and given[0].startswith("{"):
        raw(json.loads(given[0]))
    else:
        defaults = ["10000000", "256", "auto"]
        count, dim, kind = [*given[:3], *defaults[len(given[:3]) :]]
        main(int(count), int(dim), kind, given[3] if len(given) > 3 else None)
