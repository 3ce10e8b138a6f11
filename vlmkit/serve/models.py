"""The models of a service: loaded when they are first asked for, unloaded when nobody asks any more."""

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vlmkit.errors import VlmkitError
from vlmkit.io.records import name_of
from vlmkit.models.load import load_chat_model, load_embedder
from vlmkit.models.resolve import Task, resolve
from vlmkit.models.types import ENDPOINT, ChatModel, Embedder, Hardware, Sampling
from vlmkit.serve.batching import Batcher
from vlmkit.serve.errors import ApiError
from vlmkit.serve.metrics import Metrics

M = TypeVar("M", Embedder, ChatModel)
ALONE = object()  # the key of work that shares its batch with none
TEXTS = 256  # short next to what a picture takes
TASKS: tuple[Task, ...] = ("embed", "chat")


@dataclass(slots=True)
class Loaded(Generic[M]):
    """A model in memory; `users` requests are at work with it."""

    model: M
    batcher: Batcher
    users: int = 0
    used: float = field(default_factory=time.monotonic)


def tasks_of(name: str) -> list[Task]:
    """What the model called `name` can do. Raises VlmkitError where that is nothing."""
    if name.startswith(ENDPOINT):
        return ["chat"]
    tasks: list[Task] = []
    errors: list[VlmkitError] = []
    for task in TASKS:
        try:
            resolve(name, task)
            tasks.append(task)
        except VlmkitError as error:
            errors.append(error)
    if not tasks:
        raise errors[0]
    return tasks


class ModelPool:
    """Models by task and name. `names` are the names that clients know, each with that of its model and its tasks."""

    def __init__(self, names: Mapping[str, tuple[str, Iterable[Task]]], hardware: Hardware, metrics: Metrics) -> None:
        self.names = {known: (name, tuple(tasks)) for known, (name, tasks) in names.items()}
        self._hardware, self._metrics = hardware, metrics
        self._loaded: dict[tuple[Task, str], Loaded[Any]] = {}
        self._loading: dict[tuple[Task, str], asyncio.Task[None]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")  # imports of two threads may lock each other

    def name_for(self, task: Task, wanted: str | None) -> str:
        """The model that a client means by `wanted`, a name or an identity; by None the first that can do the task."""
        if wanted is None:
            name = next((name for name, tasks in self.names.values() if task in tasks), None)
            if name is None:
                raise ApiError(400, f"no model of this service can {task}", code="model_not_found", param="model")
            return name
        known = wanted if wanted in self.names else name_of(wanted)
        if known not in self.names:
            what = f"there is no model {wanted[:200]} here: use one of {', '.join(self.names)}"
            raise ApiError(404, what, code="model_not_found", param="model")
        name, tasks = self.names[known]
        if task not in tasks:
            raise ApiError(400, f"{known} cannot {task}: name another model", code="model_not_found", param="model")
        return name

    @asynccontextmanager
    async def use(self, task: Task, name: str) -> AsyncIterator[Loaded[Any]]:
        """The model called `name` (see `name_for`), which stays loaded for the time of the block."""
        key = task, name
        if key not in self._loaded:
            if key not in self._loading:
                self._loading[key] = asyncio.ensure_future(self._open(task, name))
                self._loading[key].add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.shield(self._loading[key])  # goes on for others where this request is given up
        loaded = self._loaded[key]
        loaded.users += 1
        try:
            yield loaded
        finally:
            loaded.users -= 1
            loaded.used = time.monotonic()

    async def _open(self, task: Task, name: str) -> None:
        try:
            load = asyncio.get_running_loop().run_in_executor(self._loader, self._load, task, name)
            self._loaded[task, name] = await load
            self._metrics.loaded.labels(name, task).set(1)
        finally:
            del self._loading[task, name]

    def loaded(self, task: Task, name: str) -> Any:
        """The model, if it is in memory."""
        found = self._loaded.get((task, name))
        return found and found.model

    def _load(self, task: Task, name: str) -> Loaded[Any]:
        if task == "embed":
            embedder = load_embedder(name, self._hardware)

            def embed(key: str, items: list[Any]) -> Any:
                import numpy as np

                return embedder.embed_texts(items) if key == "text" else embedder.embed_images(np.stack(items))

            def most(key: str) -> int:
                return max(TEXTS, embedder.batch.size) if key == "text" else embedder.batch.size

            return Loaded(embedder, Batcher(name, embed, most, self._metrics))
        chat = load_chat_model(name, Hardware(self._hardware.device, self._hardware.threads))

        def answer(key: Sampling | object, items: list[Any]) -> Any:
            return chat.answer(items, key) if isinstance(key, Sampling) else [item() for item in items]

        return Loaded(chat, Batcher(name, answer, lambda key: 1 if key is ALONE else chat.batch.size, self._metrics))

    def unload_idle(self, seconds: float) -> None:
        """Unload the models that had no request for so long."""
        before = time.monotonic() - seconds
        idle = [key for key, one in self._loaded.items() if not one.users and one.used < before]
        for task, name in idle:
            self._loaded.pop((task, name)).batcher.close()
            self._metrics.loaded.labels(name, task).set(0)
        if idle:
            gc.collect()
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_available():
                torch.cuda.empty_cache()

    def close(self) -> None:
        self._loader.shutdown(wait=False, cancel_futures=True)
        for loaded in self._loaded.values():
            loaded.batcher.close()
