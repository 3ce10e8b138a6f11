"""Records as Parquet: what other stores read of it, and back without a change."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from helpers import jsonl, records

from vlmkit.io.records import decode_embedding


def test_an_index_as_parquet_and_back(vlmkit, photo_rows: bytes, tmp_path: Path) -> None:
    """The vectors are float32 lists of the float16 that the index has, and come back as the same bytes."""
    vlmkit("index", "-i", "./a.index", stdin=photo_rows)
    vlmkit("index", "-i", "./a.index", "--dump", "-o", "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    rows = records(vlmkit("index", "-i", "./a.index", "--dump").stdout)
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    assert str(table.schema.field("embedding").type) == "list<element: float>"
    for found, row in zip(table["embedding"].to_pylist(), rows, strict=True):
        np.testing.assert_allclose(found, decode_embedding(row["embedding"]), atol=1e-3)
    known = json.loads(table.schema.metadata[b"vlmkit"])
    assert known == {"model": rows[0]["model"], "dim": len(found), "metric": "cosine"}
    for back in (["a.parquet"], ["-"]):
        piped = {"stdin": (tmp_path / "a.parquet").read_bytes()} if back == ["-"] else {}
        name = f"./b{len(back[0])}.index"
        vlmkit("index", "-i", name, *back, **piped)
        dumps = [vlmkit("index", "-i", one, "--dump").stdout for one in ("./a.index", name)]
        assert dumps[0] == dumps[1]


def test_columns_of_every_kind(vlmkit, tmp_path: Path) -> None:
    """A field that some lack is empty there; values of several kinds are told, and written as JSON."""
    rows = [
        {
            "id": "1",
            "embedding": [1.0, 0.0],
            "n": 1,
            "mixed": "a",
            "labels": [{"label": "cat", "score": 0.5}],
        },
        {
            "id": "2",
            "embedding": [0.0, 1.0],
            "n": 2.5,
            "mixed": 3,
            "late": True,
            "labels": [],
            "none": {},
            "nones": [{}],
        },
        {"id": "3", "embedding": [0.6, 0.8], "mixed": {"x": None}, "text": "\u00fc\U0001f600"},
    ]
    vlmkit("index", "-i", "./a.index", stdin=jsonl(*rows))
    done = vlmkit("index", "-i", "./a.index", "--dump", "--format", "parquet")
    assert (
        b"written as JSON, as their values are of several kinds or without fields: mixed, none, nones\n" in done.stderr
    )
    found = parquet.read_table(io.BytesIO(done.stdout)).to_pylist()
    assert [row["n"] for row in found] == [1.0, 2.5, None] and [row["late"] for row in found] == [None, True, None]
    assert [json.loads(row["mixed"]) for row in found] == ["a", 3, {"x": None}]
    assert [found[1][name] for name in ("none", "nones")] == ["{}", "[{}]"]
    assert found[0]["labels"] == [{"label": "cat", "score": 0.5}] and found[2]["text"] == "\u00fc\U0001f600"
