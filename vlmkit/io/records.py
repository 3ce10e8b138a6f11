"""Records: one JSON object a line, and the same rows packed as safetensors.

A record is a plain dict; a command adds fields and passes unknown ones through. The packed form holds tensor
`embedding` (float16, N x D) and tensor `records` (uint8: the rows' other fields as JSONL), so it is opened by any
safetensors reader.
"""

import base64
import contextlib
import io
import math
import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, TypeVar

import orjson

from vlmkit import __version__
from vlmkit.errors import VlmkitError

if TYPE_CHECKING:
    import numpy as np

Record = dict[str, Any]
T = TypeVar("T")

BLOB_ROWS = 4096
COPY_BYTES = 1 << 20
CHECKED_ROWS = 1024
ROUNDING = 2e-3  # of a squared norm: float16 keeps 11 bits of each number
NO_VECTOR = "embedding is empty, zero or not finite"
MAX_HEADER = 100_000_000  # bytes
MAX_DEPTH = 200  # of nested JSON: orjson reads 1,024 but writes 254


@dataclass(slots=True)
class Failed:
    """A record that a command could not process. It travels in place of the record, so the order is kept.

    `remedy` is what to do, unless it is to check the file.
    """

    id: str | None
    image: str | None
    error: str
    remedy: str = ""

    @classmethod
    def of(cls, record: Record, error: object, remedy: str = "") -> "Failed":
        """The failure of `record`, keyed as the record itself would be."""
        image = record.get("image")
        if not isinstance(image, str) or len(image) > 4096 or image.startswith("data:"):
            image = None
        remedy = remedy or getattr(error, "remedy", "")
        return cls(record.get("id", image or record.get("text")), image or None, str(error), remedy)

    def as_record(self) -> Record:
        return {"id": self.id, "image": self.image, "error": self.error}


def unless_failed(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`work` for records; a Failed is passed on unchanged."""
    return lambda item: item if isinstance(item, Failed) else work(item)


def fingerprint_of(identity: str) -> str:
    """The twelve hex digits of a model identity `name@digits`, which decide whether two models are the same."""
    return identity.rpartition("@")[2]


def name_of(identity: str) -> str:
    """The name in a model identity `name@digits`, which loads the model."""
    return identity.rpartition("@")[0]


def dumps(record: Record) -> bytes:
    """`record` as one line with its line feed. Raises ValueError for NaN, Infinity and text that is not UTF-8."""
    try:
        line = orjson.dumps(record, default=encode_embedding, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError as error:
        raise ValueError(f"cannot be written as JSON: {error}") from None
    if b"null" in line and not _finite(record):  # orjson writes NaN and Infinity as null
        raise ValueError("a number is NaN or infinite, which JSON cannot hold")
    return line


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return all(map(_finite, _items(value)))


def loads(line: bytes) -> Any:
    """The JSON value of `line`. Raises ValueError, also for NaN and Infinity, which are no JSON."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from None
    if len(line) > MAX_DEPTH and line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError(f"JSON nested more than {MAX_DEPTH} deep")
    return value


def _depth(value: Any) -> int:
    """How deeply lists and objects are nested, level by level: a recursion would end where Python's limit is."""
    depth, level = 0, [value]
    while level := [inner for outer in level for inner in _items(outer)]:
        depth += 1
    return depth


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_jsonl(lines: Iterable[bytes], name: str) -> Iterator[Record | Failed]:
    """Records of a JSONL stream; a line that is no JSON object fails alone, under the id `name:line number`."""
    for number, line in enumerate(lines, 1):
        line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
        if not line:
            continue
        try:
            value = loads(line)
        except ValueError as error:
            yield Failed(f"{name}:{number}", None, str(error))
            continue
        yield value if isinstance(value, dict) else Failed(f"{name}:{number}", None, "not a JSON object")


def read_json(data: bytes, name: str) -> Iterator[Record | Failed]:
    """Records of one JSON document: an object, or an array of objects."""
    try:
        value = loads(data.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        yield Failed(name, None, str(error))
        return
    for number, item in enumerate(value if isinstance(value, list) else [value]):
        yield item if isinstance(item, dict) else Failed(f"{name}[{number}]", None, "not a JSON object")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter (itertools.batched needs Python 3.12)."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def encode_embedding(vector: "np.ndarray") -> str:
    """Base64 of the little-endian float16 form of a vector of D numbers."""
    return base64.b64encode(vector.astype("<f2").tobytes()).decode()


def decode_embedding(value: Any) -> "np.ndarray":
    """The vector (D float32) of an `embedding` field: base64 of little-endian float16, a list of numbers, an array.

    L2-normalised again, since float16 rounds and lists may come from elsewhere. Raises ValueError.
    """
    import numpy as np

    if isinstance(value, np.ndarray):
        vector = value.astype(np.float32)
    elif isinstance(value, str):
        try:
            vector = np.frombuffer(base64.b64decode(value, validate=True), "<f2").astype(np.float32)
        except ValueError:
            raise ValueError("embedding is not base64 of float16 numbers") from None
    elif isinstance(value, list) and all(type(x) in (int, float) for x in value):
        vector = np.asarray(value, np.float32)
    elif value is None:
        raise ValueError("no embedding")
    else:
        raise ValueError("embedding is neither base64 nor a list of numbers")
    norm = float(np.linalg.norm(vector))
    if not math.isfinite(norm) or norm == 0:
        raise ValueError(NO_VECTOR)
    return vector / norm


def to_float16(value: Any) -> "np.ndarray":
    """D float16. What is a unit vector but for rounding stays as it is, so that a copy of an index is exact."""
    import numpy as np

    if isinstance(value, np.ndarray):  # of a safetensors blob, which was checked when it was read
        return value
    with contextlib.suppress(ValueError, TypeError):  # decode_embedding says what is wrong
        if isinstance(value, str):
            half = np.frombuffer(base64.b64decode(value, validate=True), "<f2")
        else:
            half = np.asarray(value, "<f2")
        wide = half.astype(np.float32)
        if abs(wide.dot(wide) - 1) < ROUNDING and (isinstance(value, str) or (wide == value).all()):
            return half
    return decode_embedding(value).astype("<f2")


def is_blob(head: bytes) -> bool:
    """Whether a stream that starts with `head` (10 bytes or more) is safetensors: a header length, then `{"`."""
    return head[8:10] == b'{"' and head[4:8] == bytes(4)


def _blob_header(count: int, dim: int, size: int, model: str | None) -> bytes:
    meta = {"count": count, "dim": dim, "model": model, "version": __version__}
    header = orjson.dumps(
        {
            "__metadata__": {"vlmkit": orjson.dumps(meta).decode()},
            "embedding": {"dtype": "F16", "shape": [count, dim], "data_offsets": [0, 2 * count * dim]},
            "records": {"dtype": "U8", "shape": [size], "data_offsets": [2 * count * dim, 2 * count * dim + size]},
        }
    )
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _split_row(record: Record) -> tuple[bytes, bytes]:
    """A record as (float16 bytes of the embedding, JSON line of the other fields)."""
    try:
        vector = decode_embedding(record.get("embedding"))
    except ValueError as error:
        remedy = "embed the records, or write JSONL"
        raise VlmkitError(f"safetensors holds vectors, and {record.get('id')} has none ({error})", remedy) from None
    return vector.astype("<f2").tobytes(), dumps({k: v for k, v in record.items() if k != "embedding"})


def pack(records: Iterable[Record]) -> Iterator[bytes]:
    """Safetensors blobs of 4,096 rows, each complete in itself. All rows have embeddings of one length."""
    for rows in batched(records, BLOB_ROWS):
        vectors, lines = zip(*map(_split_row, rows), strict=True)
        text = b"".join(lines)
        header = _blob_header(len(rows), _one_dim(map(len, vectors)) // 2, len(text), rows[0].get("model"))
        yield header + b"".join(vectors) + text


def pack_file(records: Iterable[Record], out: IO[bytes], spool: IO[bytes]) -> None:
    """Write all rows as one blob to `out`, in bounded memory: the JSON lines wait in the file `spool`.

    The header's length depends on the row count, so the vectors are moved behind it at the end.
    """
    count = size = dim = 0
    model = None
    room = 512  # more than any header needs; what is left over is padding, which the format allows
    out.write(bytes(room))
    for record in records:
        vector, line = _split_row(record)
        dim = _one_dim([dim or len(vector), len(vector)])
        model = model or record.get("model")
        out.write(vector)
        size += spool.write(line)
        count += 1
    if not count:
        out.seek(0)
        out.truncate()
        return
    header = _blob_header(count, dim // 2, size, model)[8:]
    if len(header) > room - 8:
        raise VlmkitError("the model's name is too long for a safetensors header", "shorten its path")
    spool.seek(0)
    while chunk := spool.read(COPY_BYTES):
        out.write(chunk)
    out.seek(0)
    out.write((room - 8).to_bytes(8, "little") + header.ljust(room - 8))


def _one_dim(lengths: Iterable[int]) -> int:
    found = set(lengths)
    if len(found) != 1:
        raise VlmkitError("the embeddings have different lengths", "use one model for one safetensors output")
    return found.pop()


class _Damaged(ValueError):
    """The error of invalid safetensors data."""


def read_blobs(stream: IO[bytes], name: str) -> Iterator[Record | Failed]:
    """Records of a sequence of safetensors blobs. Each record's `embedding` is a unit vector of D float16 numbers.

    One that is a unit vector but for rounding stays as it is; one that cannot be made one fails. A regular file is
    mapped, so a blob of any size is read in bounded memory; from a pipe a blob is read at once.
    """
    try:
        source: IO[bytes] | mmap.mmap = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        source.seek(stream.tell())
    except (OSError, ValueError):  # a pipe, or nothing to map
        source = stream
    try:
        while head := source.read(8):
            yield from _read_blob(source, head)
    except _Damaged as error:
        raise VlmkitError(f"{name}: {error}", "make it again with vlmkit embed") from None


def _read_blob(source: IO[bytes] | mmap.mmap, head: bytes) -> Iterator[Record | Failed]:
    import numpy as np

    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > MAX_HEADER:
        raise _Damaged("not safetensors data")
    dim, count, size, model = _parse_header(_exactly(source, length))
    lines: IO[bytes] | mmap.mmap
    if isinstance(source, mmap.mmap):
        start, end = source.tell(), source.tell() + 2 * count * dim
        if end + size > len(source):
            raise _Damaged("the safetensors data ends too early")
        vectors = np.frombuffer(source, "<f2", count * dim, start)
        source.seek(end)
        lines = source
    else:
        vectors = np.frombuffer(_exactly(source, 2 * count * dim), "<f2")
        lines = io.BytesIO(_exactly(source, size))
    first = lines.tell()
    for vector in _unit_rows(vectors.reshape(count, dim)):
        try:
            record = loads(lines.readline())
        except ValueError as error:
            raise _Damaged(f"a record is {error}") from None
        if not isinstance(record, dict):
            raise _Damaged("a record is not a JSON object")
        if model is not None:
            record.setdefault("model", model)
        if vector is None:
            yield Failed.of(record, NO_VECTOR)
        else:
            record["embedding"] = vector
            yield record
    if lines.tell() != first + size:
        raise _Damaged("not as many records as embeddings")


def _exactly(source: IO[bytes] | mmap.mmap, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise _Damaged("the safetensors data ends too early")
    return data


def _unit_rows(vectors: "np.ndarray") -> "Iterator[np.ndarray | None]":
    """The rows of `vectors` (N x D float16), normalised where they are not yet; None for zero and for no numbers."""
    import numpy as np

    for start in range(0, len(vectors), CHECKED_ROWS):
        rows = vectors[start : start + CHECKED_ROWS]
        wide = rows.astype(np.float32)
        fine = np.abs(np.einsum("nd,nd->n", wide, wide) - 1) < ROUNDING
        for row, is_fine in zip(rows, fine.tolist(), strict=True):
            try:
                yield row if is_fine else decode_embedding(row).astype("<f2")
            except ValueError:
                yield None


def _parse_header(data: bytes) -> tuple[int, int, int, str | None]:
    """(dim, count, bytes of the records tensor, model) of a blob's header, after checking that the parts agree."""
    try:
        header = orjson.loads(data)
        embedding, records = header["embedding"], header["records"]
        count, dim = embedding["shape"]
        (size,) = records["shape"]
        model = orjson.loads(header.get("__metadata__", {}).get("vlmkit", "{}")).get("model")
        end = 2 * count * dim
        sound = (
            (embedding["dtype"], records["dtype"]) == ("F16", "U8")
            and embedding["data_offsets"] == [0, end]
            and records["data_offsets"] == [end, end + size]
            and min(count, dim, size) >= 0
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"not a safetensors file of vlmkit ({error!r})") from None
    if not sound:
        raise _Damaged("the safetensors header does not describe vlmkit rows")
    return dim, count, size, model
