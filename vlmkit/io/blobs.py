"""Records packed as safetensors, which any reader of that opens: tensor `embedding` (float16, N x D) and tensor
`records` (uint8: the other fields of the rows as JSONL)."""

import io
import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import orjson

from vlmkit import __version__
from vlmkit.errors import VlmkitError
from vlmkit.io.records import NO_VECTOR, ROUNDING, Failed, Record, batched, decode_embedding, dumps, loads, may_be_deep

if TYPE_CHECKING:
    import numpy as np

Is = Callable[[Record], bool]
BLOB_ROWS = 4096
BLOCK_ROWS = 1000  # that are read together
COPY_BYTES = 1 << 20
MAX_HEADER = 100_000_000  # bytes


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


@dataclass(slots=True)
class Block:
    """Rows of a safetensors blob to which nothing has to be done: each of `lines` is what `dumps` makes of its record.

    `vectors` are N x D float16, unit vectors but for rounding.
    """

    lines: list[bytes]
    records: list[Record]
    vectors: "np.ndarray"

    def __iter__(self) -> Iterator[Record]:
        for record, vector in zip(self.records, self.vectors, strict=True):
            record["embedding"] = vector
            yield record


class _Damaged(ValueError):
    """The error of invalid safetensors data."""


def read_blobs(stream: IO[bytes], name: str) -> Iterator[Record | Failed]:
    """Records of a sequence of safetensors blobs. Each record's `embedding` is a unit vector of D float16 numbers.

    One that is a unit vector but for rounding stays as it is; one that cannot be made one fails.
    """
    for part in read_blocks(stream, name):
        if isinstance(part, Block):
            yield from part
        else:
            yield part


def read_blocks(stream: IO[bytes], name: str, is_ready: Is = bool) -> Iterator[Block | Record | Failed]:
    """The same, together as blocks where nothing has to be done to a record, which `is_ready` tells, too.

    A regular file is mapped, so a blob of any size is read in bounded memory; from a pipe a blob is read at once.
    """
    try:
        source: IO[bytes] | mmap.mmap = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        source.seek(stream.tell())
    except (OSError, ValueError):  # a pipe, or nothing to map
        source = stream
    try:
        while head := source.read(8):
            yield from _read_blob(source, head, is_ready)
    except _Damaged as error:
        raise VlmkitError(f"{name}: {error}", "make it again with vlmkit embed") from None


def _read_blob(source: IO[bytes] | mmap.mmap, head: bytes, is_ready: Is) -> Iterator[Block | Record | Failed]:
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
    for start in range(0, count, BLOCK_ROWS):
        rows = vectors.reshape(count, dim)[start : start + BLOCK_ROWS]
        some = [lines.readline() for _ in rows]
        are_units = np.abs(_squared_norms(rows) - 1) < ROUNDING
        if are_units.all() and (records := _parse_together(some, model, is_ready)):
            yield Block(some, records, rows)
        else:
            yield from _one_by_one(some, rows, are_units.tolist(), model)
    if lines.tell() != first + size:
        raise _Damaged("not as many records as embeddings")


def _exactly(source: IO[bytes] | mmap.mmap, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise _Damaged("the safetensors data ends too early")
    return data


def _squared_norms(rows: "np.ndarray") -> "np.ndarray":
    """Of N x D float16; what is not finite counts as 65,536 or more.

    The bits are shifted to where float32 has them: NumPy's own widening takes four times as long.
    """
    import numpy as np

    bits = rows.view(np.uint16).astype(np.uint32)
    bits &= 0x7FFF  # without the sign
    bits <<= 13
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)  # the exponents of float16 begin at -15, those of float32 at -127
    return np.einsum("nd,nd->n", wide, wide)


def _parse_together(lines: list[bytes], model: str | None, is_ready: Is) -> list[Record]:
    """The records of `lines`; none of them unless each line is what `dumps` makes of its record, `model` included."""
    try:
        records = orjson.loads(b"[%b]" % b",".join(lines))
        written = [orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records]
    except (orjson.JSONDecodeError, TypeError):
        return []
    # Lines that are equal again are what was parsed: none of them ends where the next one begins.
    if written != lines or any(type(record) is not dict for record in records) or any(map(may_be_deep, lines)):
        return []
    as_stored = all((model is None or "model" in record) and "embedding" not in record for record in records)
    return records if as_stored and all(map(is_ready, records)) else []


def _one_by_one(
    lines: list[bytes], vectors: "np.ndarray", are_units: list[bool], model: str | None
) -> Iterator[Record | Failed]:
    """A record a line, its vector normalised where it is not yet; a failure for zero and for no numbers."""
    for line, vector, is_unit in zip(lines, vectors, are_units, strict=True):
        try:
            record = loads(line)
        except ValueError as error:
            raise _Damaged(f"a record is {error}") from None
        if not isinstance(record, dict):
            raise _Damaged("a record is not a JSON object")
        if model is not None:
            record.setdefault("model", model)
        try:
            record["embedding"] = vector if is_unit else decode_embedding(vector).astype("<f2")
        except ValueError:
            yield Failed.of(record, NO_VECTOR)
        else:
            yield record


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
