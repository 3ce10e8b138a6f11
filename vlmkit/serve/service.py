"""What the operations of a service share: its models, its index, its pictures."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vlmkit.errors import VlmkitError
from vlmkit.index import Index
from vlmkit.io.terminal import warn
from vlmkit.serve.live_index import LiveIndex
from vlmkit.serve.metrics import Metrics
from vlmkit.serve.models import ModelPool, tasks_of
from vlmkit.serve.pictures import Pictures
from vlmkit.serve.settings import Settings

T = TypeVar("T")
LOOK_SECONDS = 5.0  # between two looks at the models and the index


class Service:
    """Raises VlmkitError for an unknown model."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        names = {known: (name, tasks_of(name)) for known, name in settings.models.items()}
        self.models = ModelPool(names, settings.hardware, self.metrics)
        self.index = LiveIndex(settings.index)
        self.pictures = Pictures(self.index, settings.threads, settings.allow_private, settings.timeout)
        self._searches = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._told = ""

    async def look(self, work: Callable[[Index], T]) -> T:
        """`work(index)`, in a thread. Raises ApiError where there is no index."""
        return await asyncio.get_running_loop().run_in_executor(self._searches, self.index.look, work)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The time in which requests are answered."""
        watching = asyncio.ensure_future(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            for part in (self.models, self.pictures, self.index):
                part.close()
            self._searches.shutdown(wait=False)

    async def _watch(self) -> None:
        """Unload idle models; open a changed index, so that no log of the old one piles up."""
        while True:
            try:
                count = await asyncio.get_running_loop().run_in_executor(self._searches, self.index.refresh)
                self.metrics.records.set(count)
                self._told = ""
            except VlmkitError as error:
                if str(error) != self._told:
                    self._told = str(error)
                    warn(self._told)
            if self.settings.idle:
                self.models.unload_idle(self.settings.idle)
            await asyncio.sleep(LOOK_SECONDS)
