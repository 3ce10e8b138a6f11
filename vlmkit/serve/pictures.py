"""Pictures in requests: data URIs, base64, URLs, and records of the index."""

import asyncio
import base64
import binascii
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vlmkit.io.http import FETCHERS, HttpClient
from vlmkit.io.sources import Bytes, Memory, PictureError, file_path, is_picture, is_url, open_source
from vlmkit.serve.errors import ApiError
from vlmkit.serve.live_index import LiveIndex

T = TypeVar("T")
LONGEST_NAME = 4096
DATA = re.compile(r"data:(?P<kind>[^;,]*)(?P<parameters>[^,]*),", re.IGNORECASE)


class Pictures:
    """Opens pictures. By URL only from public addresses, unless `allow_private`; of files only those of the index."""

    def __init__(self, index: LiveIndex, threads: int, allow_private: bool, seconds: float) -> None:
        self._index = index
        self._web = HttpClient(allow_private=allow_private, total_seconds=min(60.0, seconds))
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def open(self, reference: str, decode: Callable[[Bytes], T], param: str) -> T:
        """`decode(picture)`, in a thread. Raises ApiError, which names `param`."""
        run = asyncio.get_running_loop().run_in_executor
        try:
            if is_url(reference):
                return await run(self._decoders, decode, await run(self._fetchers, self._web.fetch, reference))
            return await run(self._decoders, lambda: decode(self.source(reference)))
        except PictureError as error:
            raise ApiError(400, f"the picture cannot be used: {error}", code="invalid_image", param=param) from None

    async def in_thread(self, work: Callable[[], T]) -> T:
        """`work()`, in a thread of those that decode."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    def source(self, reference: str) -> Bytes:
        """The picture that is in `reference`, or of the record that it names. Raises PictureError."""
        if (found := DATA.match(reference)) is not None:
            if not found["kind"].lower().startswith("image/") or "base64" not in found["parameters"].lower():
                raise PictureError("a data URI of a picture begins with data:image/png;base64,")
            return Memory(_decoded(reference[found.end() :]))
        name = file_path(reference) if reference[:5].lower() == "file:" else reference
        if len(name) <= LONGEST_NAME and (record := self._index.record(name)) is not None:
            picture = record.get("image")
            if not isinstance(picture, str):
                raise PictureError("that record has no picture")
            return open_source(picture, self._web)
        data = b"" if name is not reference else _decoded(reference)
        if not is_picture(data[:16]):
            raise PictureError("it is neither a data URI, an http(s) URL, base64 nor the id of a record in the index")
        return Memory(data)

    def close(self) -> None:
        self._web.close()
        for pool in (self._fetchers, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)


def _decoded(text: str) -> bytes:
    """The bytes that `text` is in base64; none where it is not."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise PictureError(
            "it is neither base64 of a picture, an http(s) URL nor the id of a record in the index"
        ) from None
