"""Pictures a second of `vlmkit embed`, whole process, and what its parts reach alone.

    python tests/benchmarks/embed.py [TAR...]

Without TAR, 2,000 pictures of 224 x 224 are made from the demo's photographs. Peak memory is that of the whole process.
"""

import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image

from vlmkit.cli.demo import collect

VLMKIT = str(Path(sys.executable).with_name("vlmkit"))


def make(folder: Path, count: int = 2000) -> Path:
    """A tar of `count` JPEGs: crops of the demo's photographs."""
    (folder / "photos").mkdir()
    collect(folder / "photos")
    photos = [Image.open(p).convert("RGB").resize((448, 336)) for p in sorted((folder / "photos").iterdir())]
    with tarfile.open(folder / "crops.tar", "w") as tar:
        for i in range(count):
            left, top = (7 * i) % 224, (5 * i) % 112
            data = io.BytesIO()
            photos[i % len(photos)].crop((left, top, left + 224, top + 224)).save(data, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{i:06}.jpg")
            member.size = len(data.getvalue())
            tar.addfile(member, io.BytesIO(data.getvalue()))
    return folder / "crops.tar"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        tars = sys.argv[1:] or [str(make(Path(name)))]
        for round_ in range(3):
            start = time.perf_counter()
            done = subprocess.run([VLMKIT, "embed", *tars], capture_output=True, check=True)
            took = time.perf_counter() - start
            count = done.stdout.count(b"\n")
            print(f"round {round_ + 1}: {count} pictures in {took:.2f} s, {count / took:.0f} pictures/s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
