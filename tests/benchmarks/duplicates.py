"""What `search --duplicates` takes, whole process.

    python tests/benchmarks/duplicates.py [--exact] [ROWS]...

Rows (20,000 and 100,000 by default) are seeded unit vectors of 256 numbers around 1,000 centres; every twentieth is a
near copy, with a cosine of 0.98, of the one before. No row has a file, so no copies are looked for by content.
"""

import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path

import numpy as np

from vlmkit.index import Writer

VLMKIT = str(Path(sys.executable).with_name("vlmkit"))
DIM = 256
CENTRES = 1000
COPY = 20  # every one of so many is a near copy


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def vectors(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = unit(rng.standard_normal((CENTRES, DIM), np.float32))[rng.integers(CENTRES, size=count)]
    rows = unit(rows + unit(rng.standard_normal((count, DIM), np.float32)))
    noise = unit(rng.standard_normal((len(rows[::COPY][1:]), DIM), np.float32))
    rows[COPY::COPY] = unit(rows[COPY - 1 : -1 : COPY] + 0.2 * noise)
    return rows.astype(np.float16)


def make(folder: Path, count: int) -> None:
    with Writer(folder) as writer:
        for i, row in enumerate(vectors(count)):
            writer.add({"id": f"{i:06}", "model": "toy@0", "embedding": row})


def main() -> None:
    given = [word for word in sys.argv[1:] if word != "--exact"]
    how = ["--exact"] * ("--exact" in sys.argv)
    for count in map(int, given or ["20000", "100000"]):
        with tempfile.TemporaryDirectory() as name:
            folder, out = Path(name) / "i", Path(name) / "groups.jsonl"
            maker = Process(target=make, args=(folder, count))  # whose memory would count as that of the command
            maker.start()
            maker.join()
            start = time.perf_counter()
            command = [VLMKIT, "search", "-i", str(folder), "--duplicates", *how, "-o", str(out)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            took = time.perf_counter() - start
            groups = out.read_bytes().count(b"\n")
            print(f"{count} x {DIM}: {groups} groups in {took:.1f} s, {usage.ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
