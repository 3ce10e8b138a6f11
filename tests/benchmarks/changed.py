"""How long `vlmkit embed --changed` takes where nothing changed, whole process.

    python tests/benchmarks/changed.py [COUNT]

Makes COUNT (100,000) files in folders of 1,000 and an index that holds them.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson

from vlmkit.io.records import encode_embedding

VLMKIT = str(Path(sys.executable).with_name("vlmkit"))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    vector = encode_embedding(np.full(256, 1 / 16))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        with open(folder / "rows.jsonl", "wb") as rows:
            for number in range(count):
                path = folder / f"photos/{number // 1000}/{number:06}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"?")
                facts = {"mtime": path.stat().st_mtime, "bytes": 1, "model": "toy@0123456789ab", "embedding": vector}
                rows.write(orjson.dumps({"id": str(path), "image": str(path)} | facts) + b"\n")
        index = str(folder / "index")
        subprocess.run([VLMKIT, "index", "-i", index, folder / "rows.jsonl"], check=True)
        for round_ in range(3):
            start = time.perf_counter()
            done = subprocess.run(
                [VLMKIT, "embed", "--changed", index, folder / "photos"], capture_output=True, check=True
            )
            took = time.perf_counter() - start
            assert done.stdout == b""
            print(f"round {round_ + 1}: {count} unchanged files in {took:.2f} s, {count / took:.0f} a second")


if __name__ == "__main__":
    main()
