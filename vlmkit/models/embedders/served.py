"""An embedder that a running `vlmkit serve` has loaded: `http://HOST:PORT#NAME`."""

import base64
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlmkit import __version__
from vlmkit.errors import VlmkitError, reason_of
from vlmkit.io.http import FetchError, HttpClient, RetryLater, pause_asked
from vlmkit.io.records import loads
from vlmkit.io.terminal import warn
from vlmkit.models.batching import BatchSize
from vlmkit.models.types import Embedder

if TYPE_CHECKING:
    import httpx2
    import numpy as np
    from PIL.Image import Image

TOKEN = "VLMKIT_TOKEN"  # in the environment
BATCH = 32
MAX_BYTES = 16 << 20  # of pictures in one request
SECONDS = 600.0  # for one request: the service may have to load its model
LARGE = 6_000_000  # pixels from which on a picture is sent at a fraction of its size
MARGIN = 4  # times the size of the model, which the short side keeps


class Served(Embedder):
    """The model called `name` of the service at `url`. Its vectors are those that the same model gives here.

    Pictures are sent without loss, those of many pixels at a fraction of their size. The token is $VLMKIT_TOKEN.
    """

    def __init__(self, url: str, name: str) -> None:
        import httpx2

        self._url, self._name = url.rstrip("/"), name
        token = os.environ.get(TOKEN, "").strip()
        headers = {"User-Agent": f"vlmkit/{__version__}"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._client = httpx2.Client(headers=headers, timeout=httpx2.Timeout(SECONDS, connect=10.0))
        self._web = HttpClient(allow_private=True)  # which tries again
        self._told: set[str] = set()
        reply = self._embed(["a"])
        self.identity = str(reply["model"])
        self.dim = len(_vector(reply["data"][0]))
        known = self._request("GET", "/v1/models")["data"]
        (facts,) = [one for one in known if one.get("identity") == self.identity][:1] or [{}]
        self.size = int(facts.get("size") or self.size)
        self.logit_scale = float(facts.get("logit_scale") or self.logit_scale)
        self.device = self._url
        self.batch = BatchSize(BATCH)

    def preprocess(self, image: "Image") -> "np.ndarray":
        """The picture as PNG: an array of no dimensions, so that a stack of them can be made."""
        import numpy as np

        factor = min(image.size) // (MARGIN * self.size)
        if image.width * image.height > LARGE and factor > 1:
            image = image.reduce(factor)
        data = io.BytesIO()
        image.save(data, "PNG", compress_level=1)
        made = np.empty((), object)
        made[()] = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
        return made

    def embed_images(self, pictures: "np.ndarray") -> "np.ndarray":
        return self._vectors([{"image": picture} for picture in pictures.tolist()])

    def embed_texts(self, texts: list[str]) -> "np.ndarray":
        return self._vectors([{"text": text} for text in texts])

    def _vectors(self, inputs: list[dict[str, str]]) -> "np.ndarray":
        import numpy as np

        found = [_vector(one) for batch in _by_size(inputs) for one in self._embed(batch)["data"]]
        return np.stack(found) if found else np.zeros((0, self.dim), np.float32)

    def _embed(self, inputs: list[Any]) -> Any:
        body = {"model": self._name, "input": inputs, "encoding_format": "base64"}
        reply = self._request("POST", "/v1/embeddings", body)
        new = set(reply.get("warnings", ())) - self._told
        self._told |= new
        for line in sorted(new):
            warn(line)
        return reply

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a reply; a service that is busy is asked again. Raises VlmkitError."""

        def step() -> "httpx2.Response":
            response = self._client.request(method, self._url + path, json=body)
            if response.status_code in (429, 503):
                raise RetryLater(_said(response), pause_asked(response.headers))
            return response

        try:
            response = self._web.retry(step)
        except FetchError as error:
            what = f"the service at {self._url} cannot be used ({reason_of(error)})"
            raise VlmkitError(what, "start it with vlmkit serve, or leave --via out") from None
        if response.status_code != 200:
            remedy = f"set {TOKEN}" if response.status_code == 401 else "check --via and -m"
            raise VlmkitError(f"the service at {self._url} refuses: {_said(response)}", remedy)
        try:
            return loads(response.content)
        except ValueError:
            what = f"{self._url} is no service of vlmkit"
            raise VlmkitError(what, "name the address that vlmkit serve tells") from None


def open_served(name: str) -> Served:
    """The model that `name`, `http://HOST:PORT#NAME`, names."""
    url, _, own = name.partition("#")
    return Served(url, own)


def _by_size(inputs: list[Any]) -> Iterator[list[Any]]:
    """`inputs` in order, in lists that one request can hold."""
    batch: list[Any] = []
    size = 0
    for one in inputs:
        length = sum(map(len, one.values()))
        if batch and (size + length > MAX_BYTES or len(batch) == BATCH):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += length
    if batch:
        yield batch


def _vector(entry: dict[str, Any]) -> "np.ndarray":
    import numpy as np

    return np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")


def _said(response: "httpx2.Response") -> str:
    """Why a service refuses."""
    try:
        return reason_of(loads(response.content)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"HTTP {response.status_code} {response.reason_phrase}".strip()
