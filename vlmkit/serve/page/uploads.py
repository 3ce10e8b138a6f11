"""Pictures that people look for by: small copies, in memory until newer ones take their place."""

import base64
import io
from collections import OrderedDict

from vlmkit.io.images import open_picture
from vlmkit.io.sources import Memory, content_hash
from vlmkit.serve.errors import ApiError

KEPT = 100
SIDE = 512  # pixels: more than models look at


class Uploads:
    """The JPEG of each picture, by its hash."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, bytes] = OrderedDict()

    def add(self, data: bytes) -> str:
        """The name of the picture. Raises PictureError."""
        image, _, _ = open_picture(Memory(data), SIDE)
        image.thumbnail((2 * SIDE, SIDE) if image.width > image.height else (SIDE, 2 * SIDE))
        small = io.BytesIO()
        image.save(small, "JPEG", quality=92)
        name = content_hash(data)
        self._known[name] = small.getvalue()
        self._known.move_to_end(name)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return name

    def get(self, name: str) -> bytes:
        """Raises ApiError."""
        if name not in self._known:
            what = "the picture to look for is not here any more: choose it again"
            raise ApiError(404, what, code="no_picture", param="image")
        self._known.move_to_end(name)
        return self._known[name]

    def data_uri(self, name: str) -> str:
        return f"data:image/jpeg;base64,{base64.b64encode(self.get(name)).decode()}"
