"""Qdrant: a collection of a server (`URL/COLLECTION`), or of a folder, in this process (`FOLDER/COLLECTION`).

A point's payload is the record, its id the UUIDv5 of the record's id. The collection's metadata have under `vlmkit` the
model of the vectors, their number of values and their metric. The server compares texts for equality as vlmkit does,
but neither orders texts nor tells a field that is null from one that is not there, and the client's own engine takes
true for 1. So other conditions are held against the records here, and searches get the ids of those that meet them.
"""

import contextlib
import ipaddress
import os
import re
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from vlmkit.errors import VlmkitError, check_installed, reason_of
from vlmkit.index.base import Hit, NoIndex
from vlmkit.index.types import FLAT_BYTES
from vlmkit.index.vector_stores.base import Row
from vlmkit.index.where import Condition, Conditions, explain, is_equal_text, predicate
from vlmkit.io.records import Record, batched, fingerprint_of
from vlmkit.io.sources import is_url
from vlmkit.io.terminal import warn

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

API_KEY = "QDRANT_API_KEY"
METADATA, METRIC = "vlmkit", "cosine"
TIMEOUT = 120  # seconds
PAGE = 1000  # points that are read at a time
LISTED = 10_000  # ids in one filter: 0.4 MB
NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)  # a field that stands in Qdrant's paths as it is
DEPTH = 4  # of fields that Qdrant filters by: each level may be a list or not


@dataclass(frozen=True, slots=True)
class Selection:
    """The points that `where` found: those of `filters`, which have none in common; `count` in all."""

    filters: "list[models.Filter | None]"
    count: int

    def __len__(self) -> int:
        return self.count


class Qdrant:
    """A collection of Qdrant, with the methods of `base.VectorStore`; slots are the ids of points."""

    def __init__(self, address: str) -> None:
        self._place, self._collection = split_address(address)
        self.name = f"qdrant:{address}"
        self._is_server = is_url(self._place)
        check_installed(f"qdrant:{self._place}", "vlmkit[qdrant]", "qdrant_client")
        self._client = self._connect()
        try:
            self.model, self.dim = self._read_metadata()
        except BaseException:
            self._client.close()
            raise

    @classmethod
    def create(cls, address: str, model: str | None, dim: int) -> "Qdrant":
        """Open the collection, made first where there is none. Raises VlmkitError where its vectors are others."""
        place, name = split_address(address)
        if not is_url(place):
            folder = Path(place)
            if folder.exists() and not (folder.is_dir() and (is_qdrant(folder) or not any(folder.iterdir()))):
                raise VlmkitError(f"{place} is neither a folder of Qdrant nor empty", "name another folder")
        client = connect(place)
        try:
            with errors(place):
                if not client.collection_exists(name):
                    _make(client, name, model, dim)
        finally:
            client.close()
        made = cls(address)
        if fingerprint_of(made.model or "") != fingerprint_of(model or "") or made.dim != dim:
            made.__exit__()
            what = f"{made.name} holds vectors of {made.model} with {made.dim} numbers, not of {model} with {dim}"
            raise VlmkitError(what, "name another collection")
        return made

    def _connect(self) -> "QdrantClient":
        if not self._is_server and not is_qdrant(Path(self._place)):
            raise NoIndex(f"no folder of Qdrant at {self._place}", self._remedy())
        return connect(self._place)

    def _remedy(self) -> str:
        return f"fill it: vlmkit index -i INDEX --to {self.name}"

    def _read_metadata(self) -> tuple[str | None, int]:
        from qdrant_client import models

        with errors(self._place):
            if not self._client.collection_exists(self._collection):
                there = sorted(each.name for each in self._client.get_collections().collections)
                listed = f", only {', '.join(there)}" if there else ""
                raise NoIndex(f"no collection {self._collection} at {self._place}{listed}", self._remedy())
            config = self._client.get_collection(self._collection).config
        known, vectors = (config.metadata or {}).get(METADATA), config.params.vectors
        if not isinstance(known, dict) or "dim" not in known:
            what = f"the collection {self.name} does not say which model made its vectors"
            raise VlmkitError(what, "name one that vlmkit index --to made; it needs Qdrant 1.16 or later")
        cosine = models.Distance.COSINE
        if not isinstance(vectors, models.VectorParams) or (vectors.distance, vectors.size) != (cosine, known["dim"]):
            raise VlmkitError(f"the vectors of {self.name} are not those of vlmkit", "copy the index to another one")
        return known.get("model"), vectors.size

    def __enter__(self) -> "Qdrant":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def __len__(self) -> int:
        return self._count(None)

    def _count(self, filter: "models.Filter | None") -> int:
        with errors(self._place):
            return self._client.count(self._collection, count_filter=filter, exact=True).count

    @cached_property
    def _parameters(self) -> "models.SearchParams | None":
        """Exact where a folder's search would be, too; the client's own engine always is."""
        from qdrant_client import models

        return models.SearchParams(exact=2 * self.dim * len(self) <= FLAT_BYTES) if self._is_server else None

    def search(self, queries: np.ndarray, k: int, among: Selection | None = None) -> list[list[Hit]]:
        """The k nearest records of each query (N x D float32, unit vectors) by cosine, best first."""
        from qdrant_client import models

        found: list[list[Hit]] = [[] for _ in queries]
        if k < 1 or not len(queries):
            return found
        how: dict[str, Any] = {"limit": k, "with_payload": True, "params": self._parameters}
        for filter in [None] if among is None else among.filters:
            requests = [models.QueryRequest(query=query.tolist(), filter=filter, **how) for query in queries]
            with errors(self._place):
                answers = self._client.query_batch_points(self._collection, requests=requests)
            for row, answer in enumerate(answers):
                hits = [Hit(min(p.score, 1.0), _record(p.payload), p.id) for p in answer.points]
                found[row] = sorted([*found[row], *hits], key=lambda hit: -hit.score)[:k]
        return found

    def where(self, conditions: Conditions) -> Selection:
        """The records that meet all `conditions`."""
        from qdrant_client import models

        there = [c for c in conditions if isinstance(c, Condition) and can_filter(c)]
        here = [c for c in conditions if c not in there]
        filter = models.Filter(must=list(map(_equals, there))) if there else None
        if not here:
            return Selection([filter], self._count(filter))
        meets = predicate(here)
        ids = [point.id for point in self._points(filter) if meets(_record(point.payload))]
        some = (models.HasIdCondition(has_id=listed) for listed in batched(ids, LISTED))
        return Selection([models.Filter(must=[one]) for one in some], len(ids))

    def records_of(self, among: Selection) -> Iterator[Record]:
        """The records that `where` found."""
        return (_record(point.payload) for filter in among.filters for point in self._points(filter))

    def _points(self, filter: "models.Filter | None" = None) -> "Iterator[models.Record]":
        """All points with their payload."""
        offset: Any = None
        while True:
            with errors(self._place):
                points, offset = self._client.scroll(self._collection, filter, limit=PAGE, offset=offset)
            yield from points
            if offset is None:
                return

    def explain(self, conditions: Conditions) -> list[str]:
        """Lines about conditions that no record can meet. Raises VlmkitError for an unknown field."""
        return explain((_record(point.payload) for point in self._points()), conditions)

    def slot_of(self, key: str) -> str | None:
        """The id of the point whose record has that id."""
        return point_id(key) if self.fetch([key]) else None

    def vectors_at(self, slots: Sequence[str]) -> np.ndarray:
        """The vectors of points, N x D float32."""
        with errors(self._place):
            points = self._client.retrieve(self._collection, slots, with_payload=False, with_vectors=True)
        vectors = {point.id: point.vector for point in points}
        if missing := [slot for slot in slots if slot not in vectors]:
            raise VlmkitError(f"the point {missing[0]} of {self.name} has just been deleted", "search again")
        return np.array([vectors[slot] for slot in slots], np.float32).reshape(len(slots), self.dim)

    def sample(self, count: int) -> np.ndarray:
        """The vectors of the first `count` points: their ids are digests, so that these are from all over."""
        with errors(self._place):
            points, _ = self._client.scroll(self._collection, limit=count, with_payload=False, with_vectors=True)
        return np.array([point.vector for point in points], np.float32).reshape(len(points), self.dim)

    def fetch(self, keys: Sequence[str]) -> dict[str, Row]:
        """The records that are there of those with these ids, by id."""
        ids = list(map(point_id, keys))
        with errors(self._place):
            points = self._client.retrieve(self._collection, ids, with_vectors=True)
        rows = (Row(_record(point.payload), np.array(point.vector, np.float32)) for point in points)
        return {str(row.record.get("id")): row for row in rows}

    def upsert(self, rows: Sequence[Row]) -> None:
        """Put records in, in place of those with the same ids; all are there once this returns."""
        from qdrant_client import models

        batch = models.Batch(
            ids=[point_id(str(row.record["id"])) for row in rows],
            vectors=[row.vector.tolist() for row in rows],
            payloads=[row.record for row in rows],
        )
        with errors(self._place):
            self._client.upsert(self._collection, points=batch, wait=True)


def point_id(key: str) -> str:
    """The id of the point whose record has the id `key`."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, key))


def split_address(address: str) -> tuple[str, str]:
    """URL or folder, and the collection. Raises VlmkitError."""
    place, _, collection = address.rpartition("/")
    if not collection or not place or place.endswith(":/"):
        what = f"qdrant:{address} does not name a collection"
        raise VlmkitError(what, "write qdrant:http://HOST:6333/COLLECTION or qdrant:FOLDER/COLLECTION")
    if is_url(place) and "@" in urlsplit(place).netloc:
        raise VlmkitError("the address of Qdrant contains a password", f"put the key into ${API_KEY}")
    return place, collection


def is_qdrant(folder: Path) -> bool:
    return (folder / "meta.json").is_file()


def connect(place: str) -> "QdrantClient":
    """A client of the server or the folder. Raises VlmkitError."""
    check_installed(f"qdrant:{place}", "vlmkit[qdrant]", "qdrant_client")
    from qdrant_client import QdrantClient

    key = os.environ.get(API_KEY) if is_url(place) else None
    if key and not place.lower().startswith("https://") and not _is_loopback(place):
        warn(f"${API_KEY} is sent to {place} unencrypted: use https")
    with errors(place):
        if is_url(place):
            return QdrantClient(url=place, api_key=key, timeout=TIMEOUT, check_compatibility=False)
        return QdrantClient(path=place)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _make(client: "QdrantClient", name: str, model: str | None, dim: int) -> None:
    from qdrant_client import models

    vectors = models.VectorParams(
        size=dim, distance=models.Distance.COSINE, datatype=models.Datatype.FLOAT16, on_disk=True
    )
    known = {"model": model, "dim": dim, "metric": METRIC}
    client.create_collection(name, vectors_config=vectors, metadata={METADATA: known})


def can_filter(condition: Condition) -> bool:
    """Whether Qdrant finds exactly the records that meet `condition`."""
    names = condition.field.split(".")
    return is_equal_text(condition) and len(names) <= DEPTH and all(map(NAME.fullmatch, names))


def _equals(condition: Condition) -> "models.Filter":
    """Any element equals the value; each field on the way to a nested one may be an object or a list of them."""
    from qdrant_client import models

    *outer, last = condition.field.split(".")
    paths = [".".join([*names, last]) for names in product(*([name, f"{name}[]"] for name in outer))]
    match = models.MatchValue(value=condition.value)
    return models.Filter(should=[models.FieldCondition(key=path, match=match) for path in paths])


def _record(payload: Any) -> Record:
    return payload or {}


@contextlib.contextmanager
def errors(place: str) -> Iterator[None]:
    """Raise what Qdrant's client raises as a VlmkitError, and keep its warnings for itself."""
    from qdrant_client.http import exceptions

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    except exceptions.UnexpectedResponse as error:
        if error.status_code in (401, 403):
            raise VlmkitError(f"the Qdrant server at {place} refuses access", f"put its key into ${API_KEY}") from None
        reason = reason_of(error.content.decode(errors="replace")) or error.reason_phrase
        what = f"the Qdrant server at {place} answered {error.status_code} ({reason})"
        raise VlmkitError(what, "check the address, and run this again") from None
    except exceptions.ApiException as error:
        what = f"the Qdrant server at {place} cannot be reached ({reason_of(error)})"
        raise VlmkitError(what, "start it, or correct the address, and run this again") from None
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise VlmkitError(f"another process uses the folder {place} of Qdrant", "run this when it has ended") from None
    except (OSError, ValueError) as error:
        what = f"the folder {place} of Qdrant cannot be read or written ({reason_of(error)})"
        raise VlmkitError(what, "check the folder, or name another one") from None
