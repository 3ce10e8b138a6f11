"""How quick the page of serve is over an index of many pictures, random vectors and a few real photographs:

python tests/benchmarks/page.py [100000]
"""

import http.client
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import Browser

from vlmkit.cli.demo import collect
from vlmkit.io.records import dumps
from vlmkit.models.load import load_embedder

TIMES = 20
CHUNK = 10_000
CAMERAS = ["Canon EOS 5D", "Leica Q", "Pixel 9", "X100V"]
SCROLL = """new Promise(done => {
    const times = [];
    let before = performance.now();
    const step = now => {
        times.push(now - before);
        before = now;
        scrollBy(0, 200);
        if (times.length < 900) requestAnimationFrame(step);
        else done([times.slice(1), document.querySelectorAll('#results li').length]);
    };
    requestAnimationFrame(step);
})"""
PATHS = {
    "newest": "/",
    "newest, from the 90,000th": "/?start=90000",
    "words": "/?q=a+cup+of+coffee",
    "words, the 6,000th": "/?q=a+cup+of+coffee&start=6000",
    "a year": "/?after=2015&before=2015",
    "a camera": "/?camera=Leica+Q",
    "words and a condition": "/?q=a+cat&where=width%3E%3D3000",
    "more like one": "/?like=picture-77",
    "one picture": "/picture?id=picture-77",
}


def rows(count: int, photos: list[Path], model: str, dim: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for start in range(0, count, CHUNK):
        vectors = rng.standard_normal((min(CHUNK, count - start), dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for i, vector in enumerate(vectors, start):
            record = {"id": f"picture-{i}", "image": str(photos[i % len(photos)]), "mtime": 1e9 + 5000.0 * i}
            record |= {"bytes": 4_000_000, "width": 1000 + i % 4000, "height": 3000, "camera": CAMERAS[i % 4]}
            yield dumps(record | {"model": model, "embedding": vector.astype("<f2")})


def get(port: int, path: str) -> tuple[float, int]:
    """Milliseconds to the first byte, and the bytes of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    start = time.perf_counter()
    connection.request("GET", path)
    response = connection.getresponse()
    first = response.read(1)
    took = 1000 * (time.perf_counter() - start)
    size = len(first + response.read())
    assert response.status == 200, (path, response.status)
    connection.close()
    return took, size


def scrolled(url: str, home: Path) -> str:
    """How long frames took in a browser that scrolls through the newest pictures."""
    browser = Browser(home / "profile")
    try:
        browser.open(url)
        times, shown = browser.run(SCROLL)
    finally:
        browser.close()
    times.sort()
    p50, p95 = (times[int(share * len(times))] for share in (0.5, 0.95))
    return f"scrolled through {shown:,} pictures: frames of {p50:.0f} ms, p95 {p95:.0f} ms, longest {times[-1]:.0f} ms"


def resident(pid: int) -> float:
    """Megabytes of a process in memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as home:
        photos = Path(home) / "photos"
        photos.mkdir()
        collect(photos)
        model = load_embedder("mini")
        environment = os.environ | {"XDG_DATA_HOME": home, "XDG_CACHE_HOME": f"{home}/cache"}
        index = subprocess.Popen([sys.executable, "-m", "vlmkit", "index"], stdin=subprocess.PIPE, env=environment)
        assert index.stdin
        index.stdin.writelines(rows(count, sorted(photos.iterdir()), model.identity, model.dim))
        index.stdin.close()
        assert index.wait() == 0
        words = [sys.executable, "-m", "vlmkit", "serve", "--port", "0"]
        served = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
        assert served.stderr
        port = int(re.search(r"http://[\d.]+:(\d+)", served.stderr.readline())[1])
        try:
            print(f"{count:,} records; {resident(served.pid):.0f} MB before the first request")
            for name, path in PATHS.items():
                first, size = get(port, path)
                after = sorted(get(port, path)[0] for _ in range(TIMES))
                median, slow = statistics.median(after), after[int(0.95 * TIMES)]
                print(
                    f"{name:26} first {first:5.0f} ms, then {median:4.0f} ms, p95 {slow:4.0f} ms; {size / 1000:.0f} kB"
                )
            made = [get(port, f"/thumbnail?id=picture-{i}")[0] for i in range(len(list(photos.iterdir())))]
            kept = [get(port, f"/thumbnail?id={quote(f'picture-{i}')}")[0] for i in range(200)]
            print(f"a thumbnail {statistics.median(made):.0f} ms, from the cache {statistics.median(kept):.1f} ms")
            print(scrolled(f"http://127.0.0.1:{port}/", Path(home)))
            print(f"{resident(served.pid):.0f} MB at the end, of which mini's model is a part")
        finally:
            served.terminate()
            served.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
