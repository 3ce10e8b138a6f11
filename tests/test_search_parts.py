"""Several indexes searched as one, against the index into which they were merged."""

from pathlib import Path

import numpy as np
import pytest
from helpers import embedded, jsonl, records

from vlmkit.index import Index, Writer
from vlmkit.index.parts import Parts

DIM = 6


@pytest.fixture
def merged(vlmkit, tmp_path: Path) -> str:
    """Three parts, a, b and c, whose ids overlap, with dead slots, and all of them merged."""
    rng = np.random.default_rng(0)
    for part in "abc":
        ids = rng.permutation(40)[:25]
        vectors = rng.standard_normal((25, DIM))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = [embedded(f"{i:02}", row.tolist(), part=part, n=int(i)) for i, row in zip(ids, vectors, strict=True)]
        vlmkit("index", "-i", f"./{part}", stdin=jsonl(*rows))
        vlmkit("index", "-i", f"./{part}", "--remove", rows[3]["id"], "--remove", rows[9]["id"])
        (tmp_path / "q.jsonl").write_bytes(jsonl(*rows[:6]))
    vlmkit("index", "-i", "./all", "--merge", "./a", "--merge", "./b", "--merge", "./c")
    return "./all"


def test_finds_what_the_merged_index_finds(vlmkit, merged: str) -> None:
    asked = [["--queries", "q.jsonl", "-k", k] for k in (1, 2, 5, 99)]
    asked += [["--queries", "q.jsonl", "--where", where] for where in ("part=a", "part!=c", "n<20", "id~*1")]
    likes = [row["id"] for row in records(vlmkit("index", "-i", merged, "--dump").stdout)][::5]
    asked += [["--like", key, "--relative", "-k", 7] for key in likes]
    for words in asked:
        ours = records(vlmkit("search", "-i", "./a", "-i", "./b", "--index=./c", *words).stdout)
        theirs = records(vlmkit("search", "-i", merged, *words).stdout)
        for one, other in zip(ours, theirs, strict=True):
            for name in ("score", "relative"):  # sums in another order
                assert one.pop(name, 0) == pytest.approx(other.pop(name, 0), abs=2e-3 if name == "relative" else 2e-6)
        assert ours == theirs and ours


def test_a_hidden_record_is_not_found(tmp_path: Path) -> None:
    """Those of earlier parts that are nearest are all hidden, so that more are asked for."""
    rows = np.eye(40, dtype=np.float32)
    for name, vectors in (("old", rows), ("new", -rows[:35])):
        with Writer(tmp_path / name) as writer:
            for i, row in enumerate(vectors):
                writer.add({"id": str(i), "model": "toy@0", "embedding": row, "n": name})
    query = np.array([[40.0 - i for i in range(40)]], np.float32)
    query /= np.linalg.norm(query)
    with Parts([Index(tmp_path / "old"), Index(tmp_path / "new")]) as parts:
        (hits,) = parts.search(query, 3)
        assert [hit.record["id"] for hit in hits] == ["35", "36", "37"] and len(parts) == 40
        assert parts.vectors_at([hits[0].slot, 40])[:, [35, 0]].tolist() == [[1, 0], [0, -1]]
        assert parts.slot_of("1") == 41 and parts.slot_of("39") == 39 and parts.slot_of("x") is None


def test_what_is_refused_and_told(vlmkit, merged: str, environment: dict[str, str]) -> None:
    vlmkit("index", "-i", "./other", stdin=jsonl(embedded("x", [1.0, 0.0], model="other@1")))
    parts = ["-i", "./a", "-i", "./b"]
    refused = {
        ("-i", "./a", "-i", "./other", "--like", "x"): "holds vectors of other@1, not of toy@0123456789ab",
        ("-i", "./a", "-i", "./a/", "--like", "x"): "the index at a is named twice",
        (*parts, "--duplicates"): "--duplicates looks in one folder, not in a + b",
        (*parts, "--like", "nobody"): "no such record in the index at a + b",
        (*parts, "-i", "./none", "--like", "x"): "no index at none",
        (*parts, "--queries", "q.jsonl", "--where", "colour=red"): "no record has a field colour",
    }
    for words, reason in refused.items():
        done = vlmkit("search", *words, code=2)
        assert reason in done.stderr.decode() and done.stderr.count(b"\n") == 1
    done = vlmkit("search", *parts, "--queries", "q.jsonl", "--where", "part=c", code=1)
    count = len({row["id"] for name in "ab" for row in records(vlmkit("index", "-i", f"./{name}", "--dump").stdout)})
    assert f"none of {count} records has part=c" in done.stderr.decode()
    environment["VLMKIT_INDEX"] = "./a"
    alone = vlmkit("search", "--queries", "q.jsonl").stdout
    assert alone == vlmkit("search", "-i", "./a", "--queries", "q.jsonl").stdout
