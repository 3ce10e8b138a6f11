"""Pictures with awkward names and records, and an index of them."""

import os
from pathlib import Path

import inside
import numpy as np
from conftest import own_environment
from helpers import records
from PIL import Image

from vlmkit.io.records import dumps

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


def make_album(photos: Path, folder: Path) -> None:
    """Pictures in `folder`, and `home` beside it with their index. gone.png is none by then, moved.png a link."""
    folder.mkdir()
    for name in ("coffee", "rocket", "chelsea"):
        Image.open(photos / f"{name}.png" if name != "rocket" else photos / "rocket.jpg").convert("RGB").save(
            folder / f"{name}.png"
        )
    cat = Image.open(folder / "chelsea.png")
    cat.save(folder / "cat's $(touch owned)\n copy.png")
    cat.resize((300, 200)).save(folder / '-rf "small".jpg', quality=90)
    cat.save(folder / "scan.tif")
    Image.fromarray(np.zeros((40, 4000, 3), np.uint8)).save(folder / "panorama.png")
    (folder / "gone.png").write_bytes((folder / "coffee.png").read_bytes() + b" ")
    (folder / "moved.png").write_bytes((folder / "rocket.png").read_bytes() + b" ")
    home = folder.parent / "home"
    rows = records(inside.run(["embed", str(folder)], folder, own_environment(home), b"").stdout)
    for row in rows:
        name = os.path.basename(row["image"])
        if name == "coffee.png":
            row |= {"caption": f"a cup of coffee {HOSTILE}", "ocr": "ESPRESSO\nfresh every day"}
            row |= {"camera": "Kodak <b>", "lat": 48.2, "lon": 16.37, "id": "the coffee/../&id=x"}
            row["taken"] = "2024-06-30T12:00:00"
        if name == "rocket.png":
            row |= {"taken": "2019-01-02T03:04:05", "camera": "Leica", "lat": -33.9, "lon": 151.2}
    inside.run(["index"], folder, own_environment(home), b"".join(map(dumps, rows)))
    (folder / "gone.png").unlink()
    (folder / "moved.png").unlink()
    os.symlink("/etc/passwd", folder / "moved.png")
