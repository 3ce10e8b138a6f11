"""An index in Qdrant against the same one in a folder: what is found, filtered, refused; and copies that are killed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import qdrant_edge as edge
from helpers import embedded, jsonl, records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient
from qdrant_server import NAME, QdrantServer
from test_search_where import conditions as any_conditions
from test_search_where import fields, names

from vlmkit.index.vector_stores import copying
from vlmkit.index.vector_stores.qdrant import Qdrant, _equals, can_filter, point_id
from vlmkit.index.where import Condition, parse_condition, predicate

DIM, COUNT = 8, 60


def toy_rows(count: int = COUNT, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for i, row in enumerate(rng.standard_normal((count, DIM))):
        facts = {
            "width": [100 * i, float(i), "wide", None, True][i % 5],
            "category": ["cat", "dog", "Cat", ["cat", "fox"], "1"][i % 5],
            "labels": [{"label": ["cat", "dog"][i % 2], "score": i / COUNT}] if i % 3 else {"label": "cat"},
            "taken": f"20{20 + i % 5}-01-02T03:04:05",
            "mtime": 1.7e9 + 86400 * 30 * i,
        }
        rows.append(embedded(f"é/{i:03}.jpg", (row / np.linalg.norm(row)).tolist(), **facts))
    return rows


@pytest.fixture
def folder(vlmkit, tmp_path: Path) -> str:
    """The toy index in a folder."""
    vlmkit("index", "-i", "./toy.index", stdin=jsonl(*toy_rows()))
    return "./toy.index"


@contextmanager
def in_process(_: Path) -> Iterator[str]:
    yield f"qdrant:stores/{NAME}"


@contextmanager
def by_http(_: Path) -> Iterator[str]:
    with QdrantServer() as server:
        yield f"qdrant:{server.url}/{NAME}"


WHERE = [
    "category=cat", "category!=cat", "category~c*", "category=1", "labels.label=cat", "labels.label!=cat", "width=500",
    "width>300", "width<=8", "width=true", "width=null", "width=wide", "width>w", "taken>=2022", "taken=2021-01",
    "mtime<2024-06", "labels.score>0.5", "id~é/01*",
]  # fmt: skip


@pytest.mark.parametrize("place", [in_process, by_http])
def test_finds_what_the_folder_finds(vlmkit, folder: str, tmp_path: Path, place) -> None:
    (tmp_path / "q.jsonl").write_bytes(jsonl(*toy_rows(5, seed=1)))
    asked = [["--like", "é/003.jpg"], ["--like", "é/003.jpg", "--like", "é/004.jpg", "--relative"]]
    asked += [["--queries", "q.jsonl", "-k", 3], ["--queries", "q.jsonl", "--min-score", 0.5, "-k", 99]]
    asked += [["--queries", "q.jsonl", "--where", where, "-k", 99] for where in WHERE]
    asked += [["--like", "é/003.jpg", "--where", "category=cat", "--where", "mtime>2024", "-k", 99, "--relative"]]
    with place(tmp_path) as store:
        told = vlmkit("index", "-i", folder, "--to", store).stderr.decode()
        assert told == f"vlmkit: 60 records added, 0 replaced, 0 there already: {store} holds 60\n"
        found = 0
        for words in asked:
            ours, theirs = (records(vlmkit("search", "-i", name, *words).stdout) for name in (folder, store))
            assert same(ours, theirs), words
            found += len(ours)
    assert found > 1000


def same(ours: list[dict], theirs: list[dict]) -> bool:
    """The same records with scores within 1e-3, in the same order unless the scores differ by less than 1e-4."""
    scores = {"score": 1e-3, "relative": 1e-2}  # standard deviations are large where there are few vectors
    known = {(row.get("query_id"), row["id"]): row for row in ours}
    for one, other in zip(ours, theirs, strict=True):
        row = known.pop((other.get("query_id"), other["id"]))
        varying = {"rank", *scores}
        if {k: v for k, v in row.items() if k not in varying} != {k: v for k, v in other.items() if k not in varying}:
            return False
        near = all(abs(row[name] - other[name]) < most for name, most in scores.items() if name in row)
        if not near or abs(one["score"] - row["score"]) > 1e-4 or one["rank"] != other["rank"]:
            return False
    return not known


def test_equal_texts_alone_are_filtered_by_the_server(vlmkit, folder: str, tmp_path: Path) -> None:
    with QdrantServer() as server:
        store = f"qdrant:{server.url}/{NAME}"
        vlmkit("index", "-i", folder, "--to", store)
        for where, by_server in (("category=cat", True), ("labels.label=cat", True), ("category~cat", False)):
            server.asked.clear()
            vlmkit("search", "-i", store, "--like", "é/000.jpg", "--where", where)
            assert any("scroll" in path for _, path, _ in server.asked) != by_server
        (found,) = [body for _, path, body in server.asked if path.endswith("query/batch")]
        assert "has_id" in json.dumps(found["searches"][0]["filter"])


@given(
    st.lists(st.dictionaries(names, fields, max_size=4), max_size=6), st.lists(any_conditions, min_size=1, max_size=3)
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_where_in_process(tmp_path: Path, rows: list[dict], asked: list[tuple[str, str, str]]) -> None:
    store = memory_store(rows)
    parsed = [parse_condition("".join(parts)) for parts in asked]
    selection = store.where(parsed)
    hits = store.search(np.eye(2, dtype=np.float32)[:1], 99, selection)[0]
    meets = predicate(parsed)
    assert sorted(hit.record["n"] for hit in hits) == [i for i, row in enumerate(rows) if meets(row)]
    assert len(selection) == len(hits)


def memory_store(rows: list[dict]) -> Qdrant:
    from qdrant_client import models

    store = Qdrant.__new__(Qdrant)
    store._place, store._collection, store._is_server, store._client = "memory", "c", False, QdrantClient(":memory:")
    vectors = models.VectorParams(size=2, distance=models.Distance.COSINE)
    store._client.create_collection("c", vectors_config=vectors)
    points = [models.PointStruct(id=i, vector=[1, i], payload=row | {"n": i}) for i, row in enumerate(rows)]
    if points:
        store._client.upsert("c", points=points)
    return store


def payload(rng: np.random.Generator, depth: int = 0) -> object:
    """Texts, other values, lists and objects inside each other, all from few words."""
    kind = rng.integers(7 if depth < 4 else 4)
    if kind > 4 or not depth:
        return {str(name): payload(rng, depth + 1) for name in rng.choice(["a", "b"], rng.integers(1, 3))}
    return (
        [payload(rng, depth + 1) for _ in range(rng.integers(3))] if kind == 4 else [*WORDS, 1, None][rng.integers(8)]
    )


WORDS = ["cat", "Cat", "c t", "é", "*", "cat "]


def test_equal_texts_by_the_engine_of_the_server(tmp_path: Path) -> None:
    """Qdrant's own engine, which its servers run, finds by our filter what vlmkit's conditions find."""
    rng = np.random.default_rng(0)
    rows = [payload(rng) for _ in range(3000)]
    vectors = {"": edge.EdgeVectorParams(size=2, distance=edge.Distance.Cosine)}
    shard = edge.EdgeShard.create(str(tmp_path / "edge"), edge.EdgeConfig(vectors=vectors))
    shard.update(edge.UpdateOperation.upsert_points([edge.Point(i, [1.0, i], row) for i, row in enumerate(rows)]))
    for field in ("a", "b", "a.a", "a.b", "b.a", "a.b.a", "b.b.a.b"):
        numbers = 0
        for value in WORDS:
            condition = Condition(field, "=", value)
            assert can_filter(condition)
            either = [
                edge.FieldCondition(key=each.key, match=edge.MatchValue(value=each.match.value))
                for each in _equals(condition).should
            ]
            found, _ = shard.scroll(edge.ScrollRequest(limit=len(rows), filter=edge.Filter(should=either)))
            meets = predicate([condition])
            assert sorted(point.id for point in found) == [i for i, row in enumerate(rows) if meets(row)]
            numbers += len(found)
        assert numbers > 5, field
    shard.close()


def test_again_puts_in_what_changed(vlmkit, folder: str, tmp_path: Path) -> None:
    store = f"qdrant:stores/{NAME}"
    vlmkit("index", "-i", folder, "--to", store)
    first, second, third, *_ = toy_rows()
    changed = [first | {"width": 5}, second | {"embedding": third["embedding"]}, embedded("new", [1.0] + [0.0] * 7)]
    vlmkit("index", "-i", folder, stdin=jsonl(*changed))
    vlmkit("index", "-i", folder, "--remove", third["id"])
    told = vlmkit("index", "-i", folder, "--to", store).stderr.decode().splitlines()
    assert told == [
        f"vlmkit: 1 records added, 2 replaced, 57 there already: {store} holds 61",
        f"vlmkit: 1 records of {store} are not in this index: they were left there",
    ]
    client = QdrantClient(path=str(tmp_path / "stores"))
    (point,) = client.retrieve(NAME, [point_id(first["id"])], with_vectors=True)
    (row,) = (row for row in records(vlmkit("index", "-i", folder, "--dump").stdout) if row["id"] == first["id"])
    assert point.payload == {k: v for k, v in row.items() if k != "embedding"} and point.payload["width"] == 5
    assert point.vector == pytest.approx(first["embedding"], abs=1e-3)
    known = client.get_collection(NAME).config.metadata["vlmkit"]
    client.close()
    assert known == {"model": first["model"], "dim": DIM, "metric": "cosine"}


KILLED = """
import os, signal, sys
from vlmkit.__main__ import run
from vlmkit.index.vector_stores import copying
from vlmkit.index.vector_stores import copying
from vlmkit.index.vector_stores.qdrant import Qdrant
copying.BATCH = 10
upsert, left = Qdrant.upsert, 3
def count(self, rows):
    global left
    upsert(self, rows[: 5 if not left else None])
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
Qdrant.upsert = count
sys.argv = ["vlmkit", *sys.argv[1:]]
run()
"""


def test_a_killed_copy_goes_on(vlmkit, folder: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """Killed in the middle of a batch: what is there stays, the rest is put in, and nothing twice."""
    store = f"qdrant:stores/{NAME}"
    command = [sys.executable, "-c", KILLED, "index", "-i", folder, "--to", store]
    assert subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True).returncode == -9
    told = vlmkit("index", "-i", folder, "--to", store).stderr.decode()
    assert told == f"vlmkit: 25 records added, 0 replaced, 35 there already: {store} holds 60\n"
    ours, theirs = (records(vlmkit("search", "-i", i, "--like", "é/000.jpg", "-k", 99).stdout) for i in (folder, store))
    assert same(ours, theirs) and len(ours) == COUNT - 1


def test_a_server_that_fails_in_the_middle(vlmkit, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "BATCH", 10)
    with QdrantServer() as server:
        store, server.left = f"qdrant:{server.url}/{NAME}", 3
        told = vlmkit("index", "-i", folder, "--to", store, code=2).stderr.decode()
        assert "answered 503" in told and "overloaded" in told and told.count("\n") == 1
        server.left = 1000
        told = vlmkit("index", "-i", folder, "--to", store).stderr.decode()
        assert told == f"vlmkit: 30 records added, 0 replaced, 30 there already: {store} holds 60\n"


def test_refusals(vlmkit, folder: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """Each is one line that says what to do, and exit code 2."""
    store = f"qdrant:stores/{NAME}"
    vlmkit("index", "-i", folder, "--to", store)
    vlmkit("index", "-i", "./other.index", stdin=jsonl(embedded("x", [1.0, 0.0], model="other@1")))
    QdrantClient(path=str(tmp_path / "foreign")).create_collection("c", vectors_config={})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    like = ["--like", "é/000.jpg"]
    refused = {
        ("index", "-i", "./other.index", "--to", store): "holds vectors of toy@0123456789ab with 8 numbers, not of oth",
        ("index", "-i", folder, "--to", "qdrant:full/c"): "full is neither a folder of Qdrant nor empty",
        ("index", "-i", folder, "--to", "milvus:x/c"): "begin it with qdrant:",
        ("index", "-i", folder, "--to", "qdrant:c"): "does not name a collection",
        ("index", "-i", folder, "--to", "qdrant:http://me:secret@h/c"): "put the key into $QDRANT_API_KEY",
        ("index", "-i", folder, "--to", store, "--remove", "x"): "--to changes nothing, so it excludes --remove",
        ("index", "-i", store, "--info"): "which only vlmkit search reads",
        ("serve", "-i", store): "which only vlmkit search reads",
        ("search", "-i", store, "a cat"): "unknown model toy",
        ("search", "-i", store, "-m", "mini", "a cat"): "holds vectors of toy@0123456789ab, not of mini",
        ("search", "-i", store, "--like", "nobody"): f"no such record in the index at {store}",
        ("search", "-i", store, *like, "--where", "colour=red"): "no record has a field colour",
        ("search", "-i", store, "--duplicates"): "--duplicates looks in one folder",
        ("search", "-i", store, "-i", folder, *like): "cannot be searched together with other indexes",
        ("search", "-i", "qdrant:stores/none", *like): f"no collection none at stores, only {NAME}",
        ("search", "-i", "qdrant:nowhere/c", *like): "no folder of Qdrant at nowhere",
        ("search", "-i", "qdrant:foreign/c", *like): "does not say which model made its vectors",
        ("search", "-i", "qdrant:http://127.0.0.1:9/c", *like): "server at http://127.0.0.1:9 cannot be reached",
    }
    for words, reason in refused.items():
        done = vlmkit(*words, code=2)
        assert reason in done.stderr.decode() and done.stderr.count(b"\n") == 1 and not done.stdout, words
    assert not (tmp_path / "nowhere").exists()
    held = QdrantClient(path=str(tmp_path / "stores"))
    assert b"another process uses the folder" in vlmkit("search", "-i", store, *like, code=2).stderr
    held.close()


def test_the_key_of_a_server(vlmkit, folder: str, environment: dict[str, str]) -> None:
    with QdrantServer("sesame") as server:
        store = f"qdrant:{server.url}/{NAME}"
        assert b"put its key into $QDRANT_API_KEY" in vlmkit("index", "-i", folder, "--to", store, code=2).stderr
        environment["QDRANT_API_KEY"] = "sesame"
        vlmkit("index", "-i", folder, "--to", store)
        assert records(vlmkit("search", "-i", store, "--like", "é/000.jpg", "-k", 1).stdout)
