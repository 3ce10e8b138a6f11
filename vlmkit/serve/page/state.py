"""What the routes of the page share."""

from collections.abc import Callable
from typing import TypeVar

from vlmkit.index import Index
from vlmkit.io.files import user_folder
from vlmkit.io.records import Record
from vlmkit.serve.errors import ApiError
from vlmkit.serve.page.catalog import Catalog, CatalogReader, key_of
from vlmkit.serve.page.copies import CopiesSearch
from vlmkit.serve.page.filters import Filters
from vlmkit.serve.page.thumbnails import Thumbnails
from vlmkit.serve.page.uploads import Uploads
from vlmkit.serve.service import Service

T = TypeVar("T")


class Page:
    """A page over the index of `service`."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.thumbnails = Thumbnails(user_folder("cache") / "thumbnails")
        self.uploads = Uploads()
        self.filters = Filters()
        self.copies = CopiesSearch(service.settings.index)
        self._catalogs = CatalogReader(service.settings.index)

    async def look(self, work: Callable[[Index], T]) -> T:
        return await self.service.look(work)

    async def in_thread(self, work: Callable[[], T]) -> T:
        return await self.service.pictures.in_thread(work)

    async def catalog(self) -> Catalog:
        return await self._catalogs.get(await self.look(key_of))

    async def record(self, key: str | None) -> Record:
        """The record with that id. Raises ApiError without one."""
        record = await self.look(lambda index: index.get(key or ""))
        if record is None:
            raise ApiError(404, "the index has no such picture", code="no_record", param="id")
        return record

    async def image_of(self, key: str | None) -> str:
        """The path of the picture of the record with that id. Raises ApiError without one."""
        image = (await self.record(key)).get("image")
        if not isinstance(image, str):
            raise ApiError(404, "that record has no picture", code="no_picture", param="id")
        return image

    @property
    def chat_models(self) -> list[str]:
        """The names of the models that answer questions."""
        return [known for known, (_, tasks) in self.service.models.names.items() if "chat" in tasks]
