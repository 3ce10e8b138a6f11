"""Records: one JSON object a line. A record is a plain dict; a command adds fields and passes unknown ones through."""

import base64
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

if TYPE_CHECKING:
    import numpy as np

Record = dict[str, Any]
T = TypeVar("T")

ROUNDING = 2e-3  # of a squared norm: float16 keeps 11 bits of each number
NO_VECTOR = "embedding is empty, zero or not finite"
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
    if may_be_deep(line) and _depth(value) > MAX_DEPTH:
        raise ValueError(f"JSON nested more than {MAX_DEPTH} deep")
    return value


def may_be_deep(line: bytes) -> bool:
    return len(line) > MAX_DEPTH and line.count(b"[") + line.count(b"{") > MAX_DEPTH


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
