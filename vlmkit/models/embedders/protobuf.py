"""Messages of Protocol Buffers ("Encoding" in its manual), in which ONNX stores graphs, without a library."""

from collections.abc import Iterator
from typing import Any

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5  # wire types


def read_fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """The number and the value of each field, an integer or a part of `data`. Raises ValueError where it is cut."""
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        if key & 7 == VARINT:
            value, at = read_varint(data, at)
            yield key >> 3, value - (value >> 63 << 64)
            continue
        length, at = read_varint(data, at) if key & 7 == BYTES else ({EIGHT: 8, FOUR: 4}.get(key & 7, len(data)), at)
        if at + length > len(data):
            raise ValueError("the file is damaged or ends too early")
        yield key >> 3, data[at : at + length]
        at += length


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """The integer at `at`, seven bits a byte, and the place after it."""
    value = shift = 0
    try:
        while data[at] & 128:
            value |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
        return value | data[at] << shift, at + 1
    except IndexError:
        raise ValueError("the file ends too early") from None


def serialized(*parts: tuple[int, Any]) -> bytes:
    """The message with these fields: integers, and texts or bytes with their length."""
    found = []
    for number, value in parts:
        if isinstance(value, int):
            found += [_written(number << 3 | VARINT), _written(value & (1 << 64) - 1)]
        else:
            data = value.encode() if isinstance(value, str) else value
            found += [_written(number << 3 | BYTES), _written(len(data)), data]
    return b"".join(found)


def _written(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
