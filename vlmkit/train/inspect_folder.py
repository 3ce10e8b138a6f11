"""`vlmkit train check`: whether a trained folder is complete, opens, sees, and is what its card says."""

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from vlmkit.errors import VlmkitError
from vlmkit.io.files import read_text
from vlmkit.io.records import name_of
from vlmkit.models.head import open_head
from vlmkit.models.load import load_chat_model, load_embedder
from vlmkit.models.resolve import read_json
from vlmkit.models.types import Hardware, Request, RequestError, Sampling
from vlmkit.train.checkpoints import MARKERS, SETTINGS, checkpoints
from vlmkit.train.qformer.model import has_qformer

CARD = "README.md"
TOKENS = 8  # to generate
LEAST = 1e-6  # difference that a picture makes


class Finding(NamedTuple):
    """What was looked at, what is so; or what is wrong, and what to do."""

    check: str
    detail: str
    remedy: str | None = None  # None: all is well


class Wrong(Exception):
    """(what is wrong, what to do)"""


def inspect_folder(folder: Path, device: str) -> Iterator[Finding]:
    """The findings, in order; after one that is wrong, those that need it are left out.

    Raises VlmkitError where the folder is not one that training made.
    """
    if not folder.is_dir():
        raise VlmkitError(f"{folder} is not a folder", "name one that vlmkit train made")
    yield (files := _finding("files", partial(_files, folder)))
    if files.remedy is not None:
        return
    yield _finding("weights", partial(_weights, folder))
    stage = tomllib.loads(read_text(folder / SETTINGS, "train again"))["stage"]
    others = _qformer if has_qformer(str(folder)) else _chat_model
    yield from {"contrastive": _dual_encoder, "head": _head}.get(stage, others)(folder, device)


def _finding(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check, look())
    except Wrong as wrong:
        return Finding(check, *wrong.args)
    except VlmkitError as error:
        what, _, remedy = str(error).rpartition(": ")
        return Finding(check, what, remedy)


def _files(folder: Path) -> str:
    if not any((folder / name).exists() for name in MARKERS):
        if checkpoints(folder / "checkpoints"):
            raise Wrong("the run is not finished", "give its command again, with --resume")
        raise Wrong(f"neither {' nor '.join(MARKERS)} is there", "name a folder that vlmkit train made")
    for name in (SETTINGS, CARD):
        if not (folder / name).is_file():
            raise Wrong(f"{name} is missing", "restore it, or train again")
    shards = _shards(folder)
    if lost := [name for name in shards if not (folder / name).is_file()]:
        raise Wrong(f"{lost[0]} is missing", "restore it, or train again")
    return f"{len(shards)} of weights, settings, card"


def _shards(folder: Path) -> list[str]:
    index = folder / MARKERS[1]
    return sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [MARKERS[0]]


def _weights(folder: Path) -> str:
    from safetensors import SafetensorError, safe_open

    count = 0
    for name in _shards(folder):
        try:
            with safe_open(folder / name, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (it is no dictionary)
                    value = file.get_tensor(key)
                    count += value.numel()
                    if value.is_floating_point() and not value.isfinite().all():
                        raise Wrong(f"{key} has values that are not finite", "train again at a lower rate")
        except SafetensorError as error:
            raise Wrong(f"{name} is damaged ({error})", "restore it, or train again") from None
    return f"{count:,} numbers, all finite"


def _pictures() -> list[Image.Image]:
    """A white one, and one of noise."""
    noise = torch.randint(256, (224, 224, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [Image.new("RGB", (224, 224), "white"), Image.fromarray(noise.numpy())]


def _chat_model(folder: Path, device: str) -> Iterator[Finding]:
    from vlmkit.models.llava.model import open_vlm

    opened: list[Any] = []

    def opens() -> str:
        opened.append(open_vlm(str(folder)))
        return "by transformers, no weight missing or left over"

    def has_image_tokens() -> str:
        vlm = opened[0]
        with torch.inference_mode():
            features = _features(vlm, _pictures()[0])
        made = vlm.processor(images=_pictures()[0], text="<image>", return_tensors="pt")["input_ids"]
        marks = int((made == vlm.model.config.image_token_id).sum())
        if marks != features.shape[0]:
            raise Wrong(f"{marks} image tokens for {features.shape[0]} features of a picture", "train again")
        return f"{marks} a picture"

    def sees() -> str:
        with torch.inference_mode():
            one, other = (_features(opened[0], picture) for picture in _pictures())
        if not float((one - other).abs().max()) > LEAST:
            raise Wrong("all pictures look the same to it", "train align longer, or at a lower rate")
        return "pictures differ"

    yield (first := _finding("opens", opens))
    if first.remedy is not None:
        return
    for check, look in (
        ("image tokens", has_image_tokens),
        ("sees", sees),
        ("generates", partial(_generates, folder, device)),
    ):
        yield _finding(check, look)
    vlm = opened[0]
    yield _finding("card", partial(_card, folder, {"connector": vlm.connector, "image tokens": str(vlm.image_tokens)}))


def _qformer(folder: Path, device: str) -> Iterator[Finding]:
    yield _finding("generates", partial(_generates, folder, device))
    yield _finding("card", partial(_card, folder, {"model": read_json(folder / "config.json")["model_type"]}))


def _generates(folder: Path, device: str) -> str:
    model = load_chat_model(str(folder), Hardware(device))
    pictures = map(model.preprocess, _pictures())
    requests = [Request("what is this?", [picture], number=i) for i, picture in enumerate(pictures)]
    found = model.answer(requests, Sampling(TOKENS))
    for answer in found:
        if isinstance(answer, RequestError):
            raise Wrong(str(answer), answer.remedy)
    if not any(answer.text.strip() for answer in found if not isinstance(answer, RequestError)):
        raise Wrong("its answers are empty", "train it on more data, or for longer")
    return f"up to {TOKENS} tokens about two pictures"


def _features(vlm: Any, picture: Image.Image) -> torch.Tensor:
    """(N, D): what the language model gets of a picture."""
    from vlmkit.models.llava.connectors import project, tower_features

    inner = vlm.model.model
    pixels = vlm.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    features = tower_features(inner, pixels)
    text = torch.zeros(1, 1, vlm.model.config.text_config.hidden_size)
    return project(inner, features, text, torch.ones(1, 1, dtype=torch.bool))[0]


def _dual_encoder(folder: Path, device: str) -> Iterator[Finding]:
    opened: list[Any] = []

    def opens() -> str:
        opened.append(load_embedder(str(folder), Hardware(device)))
        return f"for embed, {opened[0].dim} dimensions"

    def sees() -> str:
        model = opened[0]
        vectors = model.embed_images(np.stack([model.preprocess(picture) for picture in _pictures()]))
        texts = model.embed_texts(["a photo of a cat", "a drawing of a house"])
        for what, pair in (("pictures", vectors), ("texts", texts)):
            if not np.allclose(np.linalg.norm(pair, axis=1), 1, atol=1e-3):
                raise Wrong(f"vectors of {what} are not of length 1", "train again at a lower rate")
            if not np.abs(pair[0] - pair[1]).max() > LEAST:
                raise Wrong(f"all {what} have the same vector", "train again at a lower rate")
        return "pictures differ, texts differ"

    yield (first := _finding("opens", opens))
    if first.remedy is None:
        yield _finding("sees", sees)
        yield _finding("card", partial(_card, folder, {}))


def _head(folder: Path, device: str) -> Iterator[Finding]:
    head = open_head(folder)

    def opens() -> str:
        model = load_embedder(name_of(head.config.embedder), Hardware(device))
        head.check(model)
        vectors = model.embed_images(np.stack([model.preprocess(picture) for picture in _pictures()]))
        one, other = head.predict(vectors)
        if not np.abs(one - other).max() > LEAST:
            raise Wrong("it predicts the same for all pictures", "train it on more rows, or with a smaller --l2")
        return f"with its embedder {head.config.embedder}, predictions differ"

    yield _finding("opens", opens)
    yield _finding("card", partial(_card, folder, {"embedder": head.config.embedder, "target": head.config.target}))


def _card(folder: Path, expected: dict[str, str]) -> str:
    """Whether the card names the stage of the settings, and the parts of the model."""
    text = read_text(folder / CARD, "train again")
    settings = tomllib.loads(read_text(folder / SETTINGS, "train again"))
    made = re.search(r"Made by `vlmkit train (\w+)`", text)
    parts = re.findall(r"^\| ([a-z ]+) \| (.*) \|$", text, re.MULTILINE)
    said = {"stage": made[1] if made else "nothing"} | dict(parts)
    for name, value in ({"stage": settings["stage"]} | expected).items():
        if said.get(name) != value:
            raise Wrong(f"it says {said.get(name, 'nothing')} of the {name}, which is {value}", "correct README.md")
    return "as the model is"
