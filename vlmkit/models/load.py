"""Loads models by name. A class is imported only when a model needs it."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from vlmkit.errors import VlmkitError, first_line
from vlmkit.io.registry import Registry
from vlmkit.io.sources import is_url
from vlmkit.models.registry import CHAT_MODELS, EMBEDDERS
from vlmkit.models.resolve import Checkpoint, resolve
from vlmkit.models.types import ENDPOINT, ChatModel, Embedder, EndpointOptions, Hardware

INT8 = "+int8"  # ends the name of a model in int8, whose vectors are not those of fp32


def _silent(_: str) -> None:
    pass


def load_embedder(
    name: str,
    hardware: Hardware = Hardware(),  # noqa: B008 (frozen)
    *,
    quick_texts: bool = False,
    warn: Callable[[str], None] = _silent,
    note: Callable[[str], None] = _silent,
) -> Embedder:
    """The embedder called `name`; `http://HOST:PORT#NAME` is one of a running service.

    Raises VlmkitError where the name is unknown or the files cannot be opened.

    A model of PyTorch embeds without importing it where it can, texts that are not in the cache yet only with
    `quick_texts`; see `OnnxEmbedder`, which `warn` and `note` are for.
    """
    embedder: Embedder
    if is_url(name):
        from vlmkit.models.embedders.served import open_served

        embedder = open_served(name)
        embedder.load_arguments = name, hardware
        return embedder
    if name.endswith(INT8):
        name = name.removesuffix(INT8)
        hardware = replace(hardware, precision=hardware.precision or "int8")
    checkpoint = resolve(name, "embed")
    model_class = EMBEDDERS.load(checkpoint.backend)
    precisions = getattr(model_class, "precisions", Embedder.precisions)
    if hardware.precision not in (None, *precisions):
        what = f"{checkpoint.name} runs in {', '.join(precisions)}, not in {hardware.precision}"
        raise VlmkitError(what, "leave --precision out")
    fingerprint = _fingerprint(model_class, checkpoint)
    open_model = partial(_open, EMBEDDERS, model_class, checkpoint)
    if hardware.precision == "int8":
        from vlmkit.models.embedders.onnx import Int8Embedder
        from vlmkit.models.embedders.onnx_towers import int8_fingerprint

        fingerprint, name = int8_fingerprint(fingerprint), checkpoint.name + INT8
        embedder = Int8Embedder(checkpoint.name, fingerprint, open_model, hardware)
        embedder.identity, embedder.load_arguments = f"{name}@{fingerprint}", (name, hardware)
        return embedder
    quick = (quick_texts and hardware.device == "auto") or hardware.is_cpu
    if quick and hardware.precision in (None, "fp32") and "int8" in precisions:
        from vlmkit.models.embedders.onnx import OnnxEmbedder

        embedder = OnnxEmbedder(fingerprint, open_model, hardware, quick_texts=quick_texts, warn=warn, note=note)
    else:
        embedder = open_model(hardware)
        embedder.starts_quickly = quick_texts
    embedder.identity, embedder.load_arguments = f"{checkpoint.name}@{fingerprint}", (checkpoint.name, hardware)
    return embedder


def load_chat_model(
    name: str,
    hardware: Hardware = Hardware(),  # noqa: B008 (frozen)
    endpoint: EndpointOptions = EndpointOptions(),  # noqa: B008 (frozen)
) -> ChatModel:
    """The chat model called `name`. Raises VlmkitError where the name is unknown or the files cannot be opened."""
    if name.startswith(ENDPOINT):
        remote = CHAT_MODELS.load("openai")(name, hardware, endpoint)
        remote.identity, remote.load_arguments = f"{name}@{remote.fingerprint}", (name, hardware, endpoint)
        return remote
    if endpoint != EndpointOptions():
        what = f"--base-url, --api-key-env, --option and --rpm require a model of an endpoint, not {name}"
        raise VlmkitError(what, f"pass -m {ENDPOINT}NAME")
    checkpoint = resolve(name, "chat")
    model_class = CHAT_MODELS.load(checkpoint.backend)
    model = _open(CHAT_MODELS, model_class, checkpoint, hardware)
    model.identity = f"{checkpoint.name}@{_fingerprint(model_class, checkpoint)}"
    model.load_arguments = checkpoint.name, hardware
    return model


def _fingerprint(model_class: Any, checkpoint: Checkpoint) -> str:
    if hasattr(model_class, "fingerprint"):  # the plugin's own
        return hashlib.sha256(str(model_class.fingerprint()).encode()).hexdigest()[:12]
    return checkpoint.fingerprint()


def _open(table: Registry, model_class: Any, checkpoint: Checkpoint, hardware: Hardware) -> Any:
    if checkpoint.backend in table.builtin:
        return model_class(checkpoint, hardware)
    try:
        model = model_class(checkpoint, hardware)
    except VlmkitError:
        raise
    except Exception as error:  # a third party's code may raise anything
        what = f"the plugin {checkpoint.name} cannot be opened ({first_line(error)})"
        raise VlmkitError(what, f"check the package that provides {table[checkpoint.backend]}") from None
    base = Embedder if table is EMBEDDERS else ChatModel
    if not isinstance(model, base):
        what = f"the plugin {checkpoint.name} is not a vlmkit.models.types.{base.__name__}"
        raise VlmkitError(what, f"derive {table[checkpoint.backend]} from it")
    return model
