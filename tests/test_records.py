"""Records and their packed form: properties that hold for any record."""

import base64
import io
import json
import math
import tempfile

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmkit.errors import VlmkitError
from vlmkit.io.blobs import pack, pack_file, read_blobs
from vlmkit.io.records import Failed, decode_embedding, dumps, read_jsonl

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(SCALARS | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=8)
RECORDS = st.dictionaries(TEXT, VALUES, max_size=5)
VECTORS = st.lists(st.floats(-1, 1, width=16), min_size=4, max_size=4).filter(lambda v: math.hypot(*v) > 0.1)


@pytest.mark.slow
@given(st.lists(RECORDS))
def test_jsonl_round_trip(rows: list[dict]) -> None:
    data = b"".join(map(dumps, rows))
    assert data.count(b"\n") == len(rows)
    assert list(read_jsonl(io.BytesIO(data), "x")) == rows
    assert [json.loads(line) for line in data.splitlines()] == rows


@given(st.binary())
def test_any_bytes_as_jsonl_give_records_or_failures(data: bytes) -> None:
    for row in read_jsonl(io.BytesIO(data), "x"):
        assert isinstance(row, dict | Failed)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_nan_and_no_infinity(number: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        dumps({"a": [{"b": number}]})
    assert isinstance(next(read_jsonl(io.BytesIO(b'{"a": NaN}'), "x")), Failed)


@pytest.mark.slow
@settings(max_examples=50)
@given(st.lists(st.tuples(RECORDS, VECTORS), min_size=1, max_size=20))
def test_packed_round_trip(rows: list[tuple[dict, list[float]]]) -> None:
    made = [{"model": "m@0"} | fields | {"embedding": vector} for fields, vector in rows]
    piped = b"".join(pack(made))
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as spool:
        pack_file(made, file, spool)
        file.seek(0)
        whole = file.read()
        file.seek(0)
        mapped = list(read_blobs(file, "x"))
    for found in (list(read_blobs(io.BytesIO(piped), "x")), list(read_blobs(io.BytesIO(whole), "x")), mapped):
        assert len(found) == len(made)
        for got, put in zip(found, made, strict=True):
            assert {k: v for k, v in got.items() if k != "embedding"} == {
                k: v for k, v in put.items() if k != "embedding"
            }
            assert np.allclose(decode_embedding(got["embedding"]), decode_embedding(put["embedding"]), atol=2e-3)
    assert safetensors.numpy.load(whole)["embedding"].shape == (len(made), 4)


def test_a_pipe_carries_blobs_of_4096_rows() -> None:
    rows = ({"id": str(i), "model": "m@0", "embedding": [1.0, i]} for i in range(5000))
    blobs = list(pack(rows))
    assert [safetensors.numpy.load(blob)["embedding"].shape[0] for blob in blobs] == [4096, 904]
    assert [r["id"] for r in read_blobs(io.BytesIO(b"".join(blobs)), "x")] == [str(i) for i in range(5000)]


@settings(max_examples=200)
@given(st.data())
def test_damaged_blobs_are_refused(data: st.DataObject) -> None:
    """One byte changed or the end cut off: an error of ours or rows, never another exception."""
    (blob,) = pack([{"id": "a", "model": "m@0", "embedding": [1.0, 0.0]}])
    at = data.draw(st.integers(0, len(blob) - 1))
    changed = blob[:at] + bytes([data.draw(st.integers(0, 255))]) + blob[at + 1 :]
    for broken in (changed, blob[:at]):
        try:
            rows = list(read_blobs(io.BytesIO(broken), "x"))
        except VlmkitError:
            continue
        assert all(isinstance(row, dict) for row in rows)


def blob(*lines: bytes) -> io.BytesIO:
    """As many rows as lines, whatever these are."""
    text = np.frombuffer(b"\n".join(lines) + b"\n", np.uint8)
    return io.BytesIO(safetensors.numpy.save({"embedding": np.eye(len(lines), dtype=np.float16), "records": text}))


def test_each_line_of_a_blob_is_one_record() -> None:
    deep = b'{"a":' + b"[" * 210 + b"]" * 210 + b"}"
    for lines in (
        [b'{"a":1},{"b":2}', b'{"c":3', b'"d":4}'],
        [b'{"a":1', b'"b":2}'],
        [b"1", b"{}"],
        [b"{}", b"[]"],
        [b'[{"a":1}', b'{"b":1}]'],
        [b"{}", deep],
        [b"{}", b'{"a":NaN}'],
    ):
        with pytest.raises(VlmkitError):
            list(read_blobs(blob(*lines), "x"))
    loose = [b'{ "a": 1 }', b'{"a":1,"a":2}', b'{"b":"\\u0041"}', b'{"embedding":1}', b"{}"]
    found = list(read_blobs(blob(*loose), "x"))
    assert [row.pop("embedding").tolist() for row in found] == np.eye(5).tolist()
    assert found == [{"a": 1}, {"a": 2}, {"b": "A"}, {}, {}]


@given(VECTORS)
def test_embedding_forms_agree(numbers: list[float]) -> None:
    packed = base64.b64encode(np.array(numbers, "<f2").tobytes()).decode()
    unit = np.array(numbers, np.float32) / np.linalg.norm(np.array(numbers, np.float32))
    for value in (numbers, packed, np.array(numbers, np.float16)):
        assert np.allclose(decode_embedding(value), unit, atol=1e-3)


@pytest.mark.parametrize("value", [None, 5, "?", "AAA", [], [0.0], [True], ["a"], [1, None], {}, "AHw="])
def test_no_embedding(value: object) -> None:
    with pytest.raises(ValueError):
        decode_embedding(value)
