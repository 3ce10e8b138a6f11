"""Small things that several tests need."""

import base64
import io
import json
import os
import tarfile
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SOURCE_TREE = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}  # the recipes are not installed
COLORS = ["red", "green", "blue", "yellow", "black", "white", "purple", "orange"]
SHAPES = ["circle", "square"]
GROUNDS = ["gray", "pink", "cyan", "brown"]
SHAPE_WORDS = " ".join(["a on with", *COLORS, *SHAPES, *GROUNDS])


def records(output: bytes) -> list[dict]:
    """The records of JSONL output; every line must be whole."""
    assert not output or output.endswith(b"\n")
    return [json.loads(line) for line in output.splitlines()]


def vector(record: dict) -> np.ndarray:
    """The embedding of a record, decoded as the contract says."""
    return np.frombuffer(base64.b64decode(record["embedding"]), "<f2").astype(np.float32)


def picture(path: Path, color: str = "red", size: tuple[int, int] = (40, 30), **options: object) -> Path:
    """A small picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file with `members`."""
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def jpeg(color: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "JPEG")
    return data.getvalue()


def embedded(name: str, numbers: list[float], model: str = "toy@0123456789ab", **fields: object) -> dict:
    """A record with an embedding given as a list of numbers."""
    return {"id": name, "image": name, "model": model, **fields, "embedding": numbers}


def jsonl(*rows: dict) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def tiny_towers(folder: Path, words: str) -> None:
    """An image tower (timm) and a text tower (BERT) of random weights, in `folder`/image-tower and /text-tower."""
    import timm
    import torch
    from timm.models import save_for_hf
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    save_for_hf(
        timm.create_model("test_efficientnet", pretrained=False), folder / "image-tower", safe_serialization=True
    )
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words.split()))]
    (folder / "text-tower").mkdir()
    (folder / "text-tower/vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(folder / "text-tower/vocab.txt")).save_pretrained(folder / "text-tower")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **size)
    BertModel(config).save_pretrained(folder / "text-tower")


def shapes(folder: Path) -> Path:
    """A shard of 64 pictures, 32 x 32 pixels, each with two captions that say what is on it."""
    members: dict[str, bytes] = {}
    for number, (color, shape, ground) in enumerate(product(COLORS, SHAPES, GROUNDS)):
        image = Image.new("RGB", (32, 32), ground)
        draw = ImageDraw.Draw(image)
        (draw.ellipse if shape == "circle" else draw.rectangle)((6, 6, 26, 26), fill=color)
        data = io.BytesIO()
        image.save(data, "PNG")
        captions = [f"a {color} {shape} on {ground}", f"{ground} with a {color} {shape}"]
        members[f"{number:03}.png"] = data.getvalue()
        members[f"{number:03}.json"] = json.dumps({"id": f"{number:03}", "captions": captions}).encode()
    return tar(folder / "shapes.tar", members)


def noise(count: int, seed: int = 0) -> np.ndarray:
    """(count, 224, 224, 3) uint8 pictures of coloured clouds."""
    rng = np.random.default_rng(seed)
    small = [Image.fromarray(rng.integers(256, size=(7, 7, 3), dtype=np.uint8)) for _ in range(count)]
    return np.stack([np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)) for image in small])
