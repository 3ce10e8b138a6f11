"""What Pillow's `draft` gains on large JPEGs, and what it costs.

    python tests/benchmarks/decode.py FOLDER

Opens, decodes and scales every baseline JPEG under FOLDER for `mini` (224 pixels), each the quickest of several rounds
in turn, in seconds of one core: at a fraction of its size, as vlmkit does; in full with mini's own preprocessing, which
itself scales in two steps; and in full with Pillow's bicubic filter in one step, as open_clip and transformers do.
Prints rates, ratios, and the lowest cosines of the first to the second.
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vlmkit.io.images import open_picture
from vlmkit.io.sources import open_source
from vlmkit.models.load import load_embedder

ROUNDS = 4


def main() -> None:
    embedder = load_embedder("mini")
    paths = [path for path in sorted(Path(sys.argv[1]).rglob("*")) if _is_baseline(path)]
    totals = {"draft": 0.0, "full": 0.0, "full, one step": 0.0}
    cosines = []
    for path in paths:
        source = open_source(str(path))
        ways: dict[str, Callable[[], object]] = {
            "draft": lambda source=source: embedder.preprocess(open_picture(source, embedder.size)[0]),
            "full": lambda source=source: embedder.preprocess(open_picture(source)[0]),
            "full, one step": lambda source=source: _plainly(source.read(), embedder.size),
        }
        best = dict.fromkeys(ways, float("inf"))
        made = {}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                start = time.thread_time()
                made[name] = way()
                best[name] = min(best[name], time.thread_time() - start)
        totals = {name: totals[name] + best[name] for name in totals}
        draft, full = embedder.embed_images(np.stack([made["draft"], made["full"]]))
        cosines.append((float(full @ draft), path.name))
    print(f"{len(paths)} baseline JPEGs")
    for name, total in totals.items():
        print(f"{name:15} {len(paths) / total:6.1f} pictures/s, draft is {total / totals['draft']:.2f} times as quick")
    print("lowest cosines", ", ".join(f"{cosine:.4f} {name}" for cosine, name in sorted(cosines)[:3]))


def _plainly(data: bytes, size: int) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        shortest = min(image.size)
        wanted = (size * image.width // shortest, size * image.height // shortest)
        return image.convert("RGB").resize(wanted, Image.Resampling.BICUBIC)


def _is_baseline(path: Path) -> bool:
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            return not image.info.get("progressive")
    except OSError:
        return False


if __name__ == "__main__":
    main()
