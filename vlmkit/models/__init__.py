"""Models by name. A backend is one class in one file, imported only when its name is asked for."""

import contextlib
import hashlib
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import orjson

from vlmkit.errors import VlmkitError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

EMBEDDERS = {
    "mini": "vlmkit.models.mini:Mini",
    "open_clip": "vlmkit.models.openclip:OpenClip",
}


class Embedder(Protocol):
    """A dual encoder: pictures and texts as unit vectors in one space.

    `dim` is D, `size` the side in pixels that pictures are scaled to, `logit_scale` what cosines are multiplied by
    before a softmax gives probabilities, `device` where it runs.
    """

    device: str
    dim: int
    size: int
    logit_scale: float

    def files(self) -> list[Path]:
        """The files whose bytes define the model: weights and preprocessing."""

    def preprocess(self, image: "Image") -> "np.ndarray":
        """One RGB picture as the array that `embed_images` takes a stack of. Runs in several threads."""

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        """N preprocessed pictures -> N x D float32, L2-normalised."""

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        """N texts -> N x D float32, L2-normalised."""


@dataclass(frozen=True, slots=True)
class Model:
    """An embedder with its identity, `name@` and twelve hex digits."""

    identity: str
    embedder: Embedder


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where and how models run: `device` auto, cpu, cuda or mps; `threads` None for all cores."""

    device: str = "auto"
    threads: int | None = None


def load_embedder(name: str, hardware: Hardware = Hardware()) -> Model:
    """The model called `name`. Raises VlmkitError where the name is unknown or the files cannot be opened."""
    if name == "mini":
        backend, folder = "mini", ""
    else:
        backend, folder = _backend_of(name)
        name = folder  # absolute, so that an index finds its model from any folder
    module, attribute = EMBEDDERS[backend].split(":")
    embedder: Embedder = getattr(importlib.import_module(module), attribute)(folder, hardware)
    return Model(f"{name}@{_digits(embedder.files())}", embedder)


def digits_of(identity: str) -> str:
    """The part of a model identity that decides whether two models are the same."""
    return identity.rpartition("@")[2]


def name_of(identity: str) -> str:
    """The name that loads the model of an identity."""
    return identity.rpartition("@")[0]


def _backend_of(name: str) -> tuple[str, str]:
    """The backend that opens the folder `name`, and its absolute path."""
    folder = Path(name.removeprefix("local-dir:")).absolute()
    if (folder / "open_clip_config.json").is_file():
        return "open_clip", str(folder)
    if (folder / "mini.json").is_file():
        return "mini", str(folder)
    if folder.is_dir():
        raise VlmkitError(f"{name} holds no model that can embed", "name a folder that vlmkit train contrastive made")
    raise VlmkitError(f"unknown model {name}", "use mini, or a folder that vlmkit train contrastive made")


def hush() -> None:
    """Keep transformers' reports and bars off standard error, which is for vlmkit's own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _digits(files: Sequence[Path]) -> str:
    """Twelve hex digits of a SHA-256 over `files`, remembered by path, size and time."""
    key = [[str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(files)]
    memory = cache_folder() / "identities.json"
    try:
        known = orjson.loads(memory.read_bytes())
        remembered = {orjson.dumps(entry["files"]): str(entry["digits"]) for entry in known}
    except (OSError, ValueError, TypeError, KeyError):
        known, remembered = [], {}
    if (digits := remembered.get(orjson.dumps(key))) is not None:
        return digits
    total = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.name):
        total.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    digits = total.hexdigest()[:12]
    _remember(memory, [*known[-63:], {"files": key, "digits": digits}])
    return digits


def _remember(memory: Path, entries: list[dict[str, object]]) -> None:
    temporary = memory.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # only a cache: the next command computes the digits again
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(orjson.dumps(entries))
        temporary.replace(memory)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/vlmkit`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlmkit"
