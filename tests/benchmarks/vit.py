"""An open_clip model on the CPU: `vlmkit embed`, whole process, against a script as one writes it by hand.

    python tests/benchmarks/vit.py FOLDER [--count 200] [--rounds 3] [--model DIR]

FOLDER has pictures; the first `--count` are embedded. Without --model it is ViT-B/32 with random weights, which take as
long as others. The script is open_clip's own example in batches of 32. Ways alternate; each has its shortest time of
all rounds, processor time (user and system), peak memory, and its lowest cosine to the vectors of the script. Round 0,
in which the towers are written, is printed by itself.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

VLMKIT = str(Path(sys.executable).with_name("vlmkit"))
SCRIPT = """
import sys
from pathlib import Path
import numpy as np, open_clip, torch
from PIL import Image
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{sys.argv[1]}")
model.eval()
paths = sorted(Path(sys.argv[2]).iterdir())
made = []
with torch.inference_mode():
    for i in range(0, len(paths), 32):
        batch = torch.stack([preprocess(Image.open(path)) for path in paths[i : i + 32]])
        features = model.encode_image(batch)
        made.append(features / features.norm(dim=-1, keepdim=True))
np.save(sys.argv[3], torch.cat(made).numpy())
"""


def random_vit(folder: Path) -> Path:
    """ViT-B/32 of random weights in `folder`, in open_clip's form."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-32")
    folder.mkdir()
    save_file(open_clip.create_model("ViT-B-32").state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds, seconds of processor time, and MB of memory at most of `command`."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, command
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, spent, used.ru_maxrss / 1024


def vectors(path: Path) -> np.ndarray:
    """N x D unit vectors that a way has written."""
    made = np.load(path) if path.suffix == ".npy" else load_file(path)["embedding"].astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model = options.model or random_vit(place / "model")
        (pictures := place / "pictures").mkdir()
        for path in sorted(path for path in options.folder.rglob("*.jpg"))[: options.count]:
            shutil.copy(path, pictures)
        environment = os.environ | {"XDG_CACHE_HOME": str(place / "cache")}
        embed = [VLMKIT, "embed", "-q", "--device", "cpu", "-m", str(model), str(pictures)]
        ways = {
            "script": ("npy", [sys.executable, "-c", SCRIPT, str(model), str(pictures)]),
            "vlmkit": ("safetensors", [*embed, "-o"]),
            "vlmkit bf16": ("safetensors", [*embed, "--precision", "bf16", "-o"]),
            "vlmkit int8": ("safetensors", [*embed, "--precision", "int8", "-o"]),
        }
        times: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
        for _ in range(options.rounds + 1):
            for way, (kind, command) in ways.items():
                times[way].append(measured([*command, str(place / f"{way}.{kind}")], environment))
        by_hand = vectors(place / "script.npy")
        shortest = {way: np.min(rounds[1:], axis=0) for way, rounds in times.items()}
        print(f"{len(by_hand)} pictures        round 0      best  times   processor  times    MB   cosine")
        for way, (kind, _) in ways.items():
            wall, spent, memory = shortest[way]
            ratio, of_processor = shortest["script"][:2] / (wall, spent)
            cosine = (vectors(place / f"{way}.{kind}") * by_hand).sum(axis=1).min()
            line = f"{way:16} {times[way][0][0]:10.1f} s {wall:7.1f} s {ratio:6.2f} {spent:9.1f} s {of_processor:6.2f}"
            print(f"{line} {memory:7.0f} {cosine:8.5f}")


if __name__ == "__main__":
    main()
