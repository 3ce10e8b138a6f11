"""Models of another package: by the name of an entry point every command takes them."""

from pathlib import Path

import pytest
from helpers import jsonl, picture, records

pytestmark = pytest.mark.slow

MODULE = """
import os

import numpy as np

from vlmkit.models.types import Answer, ChatModel, Embedder

WORDS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


def unit(rows):
    rows = np.asarray(rows, np.float32) + 1e-3
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Colors(Embedder):
    dim = 3

    def __init__(self, checkpoint, hardware):
        pass

    def preprocess(self, image):
        return np.asarray(image.resize((8, 8)), np.float32) / 255

    def embed_images(self, pictures):
        return unit(pictures.mean((1, 2)))

    def embed_texts(self, texts):
        return unit([np.sum([WORDS.get(word, (0, 0, 0)) for word in text.strip(".").split()], 0) for text in texts])


class Versioned(Colors):
    @classmethod
    def fingerprint(cls):
        return os.environ.get("COLORS", "1")


class Broken(Colors):
    def __init__(self, checkpoint, hardware):
        raise RuntimeError("no weights\\nat all")


class Chat(ChatModel):
    def __init__(self, checkpoint, hardware):
        pass

    def answer(self, requests, sampling):
        return [Answer(f"{request.prompt} {len(request.pictures)}".strip(), "stop", 2) for request in requests]
"""
ENTRIES = """[vlmkit.embedders]
colors = colors_plugin:Colors
versioned = colors_plugin:Versioned
broken = colors_plugin:Broken
other = colors_plugin:Chat
mini = colors_plugin:Broken
[vlmkit.chat_models]
colors = colors_plugin:Chat
"""


@pytest.fixture(autouse=True)
def package(environment: dict[str, str], tmp_path: Path) -> Path:
    """The folder of an installed package with the models of MODULE."""
    folder = tmp_path / "site"
    (folder / "colors_plugin-1.0.dist-info").mkdir(parents=True)
    (folder / "colors_plugin.py").write_text(MODULE)
    (folder / "colors_plugin-1.0.dist-info/METADATA").write_text("Name: colors-plugin\nVersion: 1.0\n")
    (folder / "colors_plugin-1.0.dist-info/entry_points.txt").write_text(ENTRIES)
    environment["PYTHONPATH"] = f"{folder}:{environment.get('PYTHONPATH', '')}"
    return folder


def test_every_command_takes_them(installed, tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{color}.png", color) for color in ("red", "lime", "blue")]
    made = installed("embed", "-m", "colors", *paths).stdout
    installed("index", "-i", "./i", stdin=made)
    for query in (("green",), ("--image", paths[1]), ("--queries", "q.jsonl")):
        (tmp_path / "q.jsonl").write_bytes(jsonl({"text": "green"}))
        assert records(installed("search", "-i", "./i", *query, "-k", 1).stdout)[0]["image"] == str(paths[1])
    found = records(installed("classify", "-m", "colors", *paths, "--labels", "red,green,blue").stdout)
    assert [row["label"] for row in found] == ["red", "green", "blue"]
    assert installed("ask", "-m", "colors", paths[0], "how many?").stdout == b"how many? 1\n"
    assert installed("caption", "-m", "colors", paths[0]).stdout.startswith(b"Describe this picture in one sentence.")


def test_their_identity(installed, environment: dict[str, str], package: Path) -> None:
    """By the entry point and the version of its package, or by what the class says."""

    def identity(name: str) -> str:
        return records(installed("embed", "-m", name, "--text", stdin=b"red\n").stdout)[0]["model"]

    first, own = identity("colors"), identity("versioned")
    assert first.startswith("colors@") and len(first) == len("colors@") + 12 and identity("colors") == first
    metadata = package / "colors_plugin-1.0.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    assert identity("colors") != first and identity("versioned") == own
    environment["COLORS"] = "2"
    assert identity("versioned") != own


def test_what_does_not_work_is_one_line(installed, tmp_path: Path) -> None:
    for name, reason in {
        "broken": b"the plugin broken cannot be opened (no weights): check the package that provides colors_plugin:",
        "other": b"the plugin other is not a vlmkit.models.types.Embedder: derive colors_plugin:Chat from it",
        "colors+int8": b"colors runs in fp32, not in int8: leave --precision out",
        "colours": b"unknown model colours: use mini, ",
        "transformers": b"unknown model transformers",
    }.items():
        done = installed("embed", "-m", name, "--text", stdin=b"red\n", code=2)
        assert reason in done.stderr and done.stderr.count(b"\n") == 1
    installed("embed", "-m", "mini", "--text", stdin=b"a name of vlmkit's own stays its own\n")
