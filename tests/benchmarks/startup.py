"""How quick a cold command is: ratios to plain imports, interleaved in one run, and peak memory.

    python tests/benchmarks/startup.py [PICTURES]

PICTURES (default: the demo's photographs) are indexed once, then searched cold: with mini, and with a CLIP ViT-B/32 of
random weights whose text tower the first search has written.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vlmkit.cli.demo import collect

VLMKIT = str(Path(sys.executable).with_name("vlmkit"))
ROUNDS = 7


def seconds(command: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    return time.perf_counter() - start


def clip_index(folder: str) -> str:
    """An index of one picture by a ViT-B/32 of open_clip with random weights."""

    import open_clip
    from PIL import Image
    from safetensors.torch import save_file

    Path(folder, "clip").mkdir()
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {}}
    Path(folder, "clip/open_clip_config.json").write_text(json.dumps(config))
    save_file(open_clip.create_model("ViT-B-32").state_dict(), f"{folder}/clip/open_clip_model.safetensors")
    Image.new("RGB", (64, 64), "red").save(f"{folder}/red.png")
    line = [VLMKIT, "embed", "-m", f"{folder}/clip", f"{folder}/red.png"]
    rows = subprocess.run(line, capture_output=True, check=True).stdout
    subprocess.run([VLMKIT, "index", "-i", f"{folder}/c"], input=rows, check=True)
    return f"{folder}/c"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # nothing is compiled in each run, as for what pip installed
        pictures = sys.argv[1] if len(sys.argv) > 1 else folder
        if pictures == folder:
            collect(Path(folder))
        rows = subprocess.run([VLMKIT, "embed", pictures], capture_output=True, check=True).stdout
        subprocess.run([VLMKIT, "index", "-i", f"{folder}/i"], input=rows, check=True)
        search = [VLMKIT, "search", "-i", f"{folder}/i", "sunset over mountains", "-l"]
        seconds(search, folder)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        clip_search = [VLMKIT, "search", "-i", clip_index(folder), "sunset over mountains", "-l"]
        first = seconds(clip_search, folder)
        commands = {
            "import typer": [sys.executable, "-c", "import typer"],
            "vlmkit --help": [VLMKIT, "--help"],
            "import open_clip": [sys.executable, "-c", "import open_clip"],
            "vlmkit search": search,
            "with ViT-B/32": clip_search,
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                times[name].append(seconds(command, folder))
        middle = {name: statistics.median(found) for name, found in times.items()}
    for name, value in middle.items():
        print(f"{name:18} {value:6.3f} s (median of {ROUNDS})")
    print(f"vlmkit --help / import typer     {middle['vlmkit --help'] / middle['import typer']:.2f}")
    print(f"vlmkit search / import open_clip {middle['vlmkit search'] / middle['import open_clip']:.3f}")
    print(f"with ViT-B/32 / import open_clip {middle['with ViT-B/32'] / middle['import open_clip']:.3f}")
    print(f"first search with ViT-B/32, which writes the text tower: {first:.1f} s")
    print(f"largest of embed, index and search in memory: {memory:.0f} MB")


if __name__ == "__main__":
    main()
