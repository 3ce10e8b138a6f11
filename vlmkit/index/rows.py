"""Records on their way into an index, each embedding checked and in the form that is stored."""

import base64
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from vlmkit.records import ROUNDING, Failed, Record, decode_embedding

if TYPE_CHECKING:
    import numpy as np


def decoded(results: Iterable[Record | Failed]) -> Iterator[Record | Failed]:
    """Each record with its `embedding` as a unit vector (D float16); one without id or embedding fails."""
    for record in results:
        if isinstance(record, Failed):
            yield record
        elif record.get("id") is None:
            yield Failed.of(record, "no id")
        else:
            try:
                record["embedding"] = _stored(record.get("embedding"))
                yield record
            except ValueError as error:
                yield Failed.of(record, f"{error}; vlmkit embed makes one" if "embedding" not in record else error)


def _stored(value: Any) -> "np.ndarray":
    """D float16. What is a unit vector but for rounding stays as it is, so that a copy of an index is exact."""
    import numpy as np

    if isinstance(value, np.ndarray):  # of a safetensors blob, which was checked when it was read
        return value
    if isinstance(value, str):
        try:
            value = np.frombuffer(base64.b64decode(value, validate=True), "<f2")
        except ValueError:
            raise ValueError("embedding is not base64 of float16 numbers") from None
        wide = value.astype(np.float32)
        if abs(wide.dot(wide) - 1) < ROUNDING:
            return value
    return decode_embedding(value).astype("<f2")
