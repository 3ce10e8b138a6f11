"""Types of index: built, measured, rebuilt, and never missing a record."""

import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from vlmkit.cli.index import TYPE_HELP
from vlmkit.errors import VlmkitError
from vlmkit.index import Index, Writer
from vlmkit.index.maintenance import maintain, set_type
from vlmkit.index.types import TYPES, choose, flat
from vlmkit.index.verify import verify

pytestmark = pytest.mark.slow

DIM = 32


def clustered(count: int, seed: int = 0, spread: float = 0.5) -> np.ndarray:
    """Unit vectors around 50 centres, count x 32 float32."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((50, DIM))
    vectors = centres[rng.integers(50, size=count)] + spread * rng.standard_normal((count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write(folder: Path, vectors: np.ndarray, start: int = 0) -> None:
    with Writer(folder) as writer:
        for i, row in enumerate(vectors, start):
            writer.add({"id": str(i), "model": "toy@0", "embedding": row})


def ids(index: Index, queries: np.ndarray, k: int = 10) -> list[list[str]]:
    return [[hit.record["id"] for hit in hits] for hits in index.search(queries, k)]


def recall(folder: Path, queries: np.ndarray) -> float:
    """recall@10 against the exact search of the same index."""
    with Index(folder) as index:
        truth = index.search(queries, 10, among=index.live())
        found = ids(index, queries)
    return float(np.mean([len({h.record["id"] for h in t} & set(f)) / 10 for t, f in zip(truth, found, strict=True)]))


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq", "IVF32,Flat", "PCA16,IVF16,SQ8", "IDMap,Flat", "OPQ8,PQ8x4"])
def test_each_type(tmp_path: Path, kind: str) -> None:
    folder, vectors = tmp_path / "i", clustered(4000)
    write(folder, vectors)
    set_type(folder, kind)
    maintain(folder, insist=True)
    queries = clustered(50, seed=1)
    with Index(folder) as index:
        verify(index)
        assert index.info()["type"] == kind
        for query, hits in zip(queries, index.search(queries, 5), strict=True):
            for hit in hits:  # the score is the cosine to what is stored, whatever the type
                assert hit.score == pytest.approx(float(index.vectors_at([hit.slot])[0] @ query), abs=1e-5)
    if kind in ("hnsw", "ivf", "ivfpq"):
        assert recall(folder, queries) >= 0.95


def test_effort_ends_where_the_codes_are_what_limits(tmp_path: Path) -> None:
    folder = tmp_path / "i"
    write(folder, clustered(4000, spread=50))
    set_type(folder, "IVF512,PQ1x4")
    maintain(folder, insist=True)
    with Index(folder) as index:
        info = index.ann.info
    assert info.recall < 0.98 and info.search_effort <= 512, "visiting more lists than there are finds no more"


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "PCA16,IVF16,SQ8"])
def test_a_lone_query_finds_what_it_finds_among_others(tmp_path: Path, kind: str) -> None:
    """All cores look for a lone query; that must not decide which of equals are found."""
    folder, vectors = tmp_path / "i", np.repeat(clustered(400), 12, axis=0)
    write(folder, vectors)
    set_type(folder, kind)
    maintain(folder, insist=True)
    queries = np.vstack([clustered(20, seed=1), clustered(20)])
    with Index(folder) as index:
        together = ids(index, queries)
        assert [ids(index, query[None])[0] for query in queries] == together


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_nothing_is_missing_while_a_rebuild_is_not_due(tmp_path: Path, kind: str) -> None:
    """New records are found at once, removed and replaced ones never again, and as many as wanted come."""
    folder, vectors = tmp_path / "i", clustered(3000)
    write(folder, vectors)
    set_type(folder, kind)
    maintain(folder, insist=True)
    with Index(folder) as index:
        first = index.ann
        near = ids(index, vectors[:1], 100)[0]
    with Writer(folder) as writer:
        writer.remove([(key, None) for key in near])
    late = clustered(40, seed=2)
    write(folder, late, start=10_000)
    maintain(folder)
    with Index(folder) as index:
        assert first and index.ann and index.ann.info == first.info
        verify(index)
        assert [found[0] for found in ids(index, late, 1)] == [str(10_000 + i) for i in range(40)]
        left = ids(index, vectors[:1], 200)[0]
        assert len(set(left)) == 200 and not set(left) & set(near)
        assert len(ids(index, vectors[:1], 10**6)[0]) == len(index) == 2940


def test_dead_slots_make_it_build_again(tmp_path: Path) -> None:
    folder, vectors = tmp_path / "i", clustered(1000)
    write(folder, vectors)
    set_type(folder, "hnsw")
    maintain(folder, insist=True)
    with Writer(folder) as writer:
        writer.remove([(str(i), None) for i in range(600)])
    maintain(folder)
    with Index(folder) as index:
        verify(index)
        assert index.ann and index.ann.info.covered == 400 == index.state.slots
        assert ids(index, vectors[700:701], 1) == [["700"]]
    assert len(list(folder.glob("ann-*"))) == 1


def test_many_new_records_make_it_build_again(tmp_path: Path) -> None:
    folder = tmp_path / "i"
    write(folder, clustered(500))
    set_type(folder, "ivf")
    maintain(folder, insist=True)
    write(folder, clustered(10_001, seed=3), start=500)
    maintain(folder)
    with Index(folder) as index:
        assert index.ann and index.ann.info.covered == 10_501
        verify(index)


def test_auto_goes_by_size() -> None:
    assert [choose("auto", count, 256).type for count in (1, 500_000, 1_000_000, 10_000_000)] == [
        "flat",
        "flat",
        "ivf",
        "ivfpq",
    ]
    for count in (1, 2, 3, 5, 100):  # no more lists than records, and IVF by its string all the way down
        faiss.index_factory(7, str(choose("ivf", count, 7).factory))


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_types_of_a_few_records(tmp_path: Path, kind: str, count: int) -> None:
    write(tmp_path / "i", clustered(count))
    set_type(tmp_path / "i", kind)
    maintain(tmp_path / "i", insist=True)
    with Index(tmp_path / "i") as index:
        assert index.info()["type"] == kind
        assert ids(index, clustered(count)[-1:], 1) == [[str(count - 1)]]


def test_the_type_by_the_command(vlmkit, tmp_path: Path) -> None:
    """Changed from the stored vectors: the embeddings are not needed again, and --dump stays the same."""
    write(tmp_path / "i", clustered(300))
    before = vlmkit("index", "-i", "./i", "--dump").stdout
    for kind, used in [("hnsw", "hnsw"), ("ivf", "ivf"), ("auto", "flat")]:
        assert not vlmkit("index", "-i", "./i", "--type", kind).stderr
        info = json.loads(vlmkit("index", "-i", "./i", "--info").stdout)
        assert (info["type"], info["reason"].startswith((kind, "auto"))) == (used, True)
        vlmkit("index", "-i", "./i", "--verify")
        assert vlmkit("index", "-i", "./i", "--dump").stdout == before
    assert not list((tmp_path / "i").glob("ann-*"))


@pytest.mark.parametrize("kind", ["bogus", "PQ5", "IVF", "", "HNSW32,Nonsense"])
def test_wrong_types_are_refused(vlmkit, tmp_path: Path, kind: str) -> None:
    write(tmp_path / "i", clustered(10))
    done = vlmkit("index", "-i", "./i", "--type", kind, code=2)
    assert done.stderr.count(b"\n") == 1 and b"--type" in done.stderr
    vlmkit("index", "-i", "./i", "--verify")


def test_too_few_records_for_a_type(vlmkit, tmp_path: Path) -> None:
    write(tmp_path / "i", clustered(300))
    done = vlmkit("index", "-i", "./i", "--type", "IVF1024,Flat", code=2)
    assert done.stderr.count(b"\n") == 1
    vlmkit("index", "-i", "./i", "--verify")
    with Index(tmp_path / "i") as index:
        assert ids(index, clustered(300)[7:8], 1) == [["7"]]


def test_among_is_exact(tmp_path: Path) -> None:
    folder, vectors = tmp_path / "i", clustered(2000)
    write(folder, vectors)
    set_type(folder, "ivfpq")
    maintain(folder, insist=True)
    some = np.arange(3, 2000, 7)
    with Index(folder) as index:
        stored = np.asarray(index.vectors, np.float32)
        expected = some[np.argsort(-(vectors[:20] @ stored[some].T), axis=1)[:, :4]]
        found = [[hit.slot for hit in hits] for hits in index.search(vectors[:20], 4, among=some)]
        assert found == expected.tolist()
        assert index.search(vectors[:1], 4, among=np.empty(0, np.int64)) == [[]]


def test_reading_interface(tmp_path: Path) -> None:
    vectors = clustered(5)
    write(tmp_path / "i", vectors)
    with Writer(tmp_path / "i") as writer:
        writer.remove([("1", None)])
    with Index(tmp_path / "i") as index:
        assert index.live().tolist() == [0, 2, 3, 4]
        assert (index.slot_of("3"), index.slot_of("1"), index.slot_of("x")) == (3, None, None)
        assert [(slot, record["id"]) for slot, record in index.records()] == [(s, str(s)) for s in (0, 2, 3, 4)]
        assert np.array_equal(index.vectors_at([2])[0], vectors[2].astype(np.float16).astype(np.float32))
        with pytest.raises(VlmkitError):
            index.record(1)


def test_one_openmp_runtime_wins_where_torch_came_first(tmp_path: Path) -> None:
    """PyPI's torch opens its libgomp globally, so FAISS, loaded after it, takes its functions from there."""
    write(tmp_path / "i", clustered(20_000))
    code = f"""
import torch, sys
from pathlib import Path
torch.set_num_threads(2)
a = torch.randn(300, 300); (a @ a).sum()
assert "faiss" not in sys.modules
import numpy as np
from vlmkit.index import Index
with Index(Path({str(tmp_path / "i")!r})) as index:
    hits = index.search(np.asarray(index.vectors[:50], np.float32), 3)
assert [h[0].slot for h in hits] == list(range(50))
import faiss
faiss.omp_set_num_threads(1)
(a @ a).sum()
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


def test_the_help_names_every_type() -> None:
    assert all(name in TYPE_HELP for name in TYPES.builtin)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_numpy_finds_in_few_vectors_what_faiss_finds(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    """Among all, the live ones, and some rows; of equal scores the lower slot comes first."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(60, 16)).astype(np.float16)
    vectors[20:40] = vectors[:20]
    queries = rng.normal(size=(3, 16)).astype(np.float32)
    live = rng.random(60) < 0.8
    some = np.flatnonzero(live)[: max(k, 10)]
    found = []
    for few in (flat.FEW_NUMBERS, 0):
        monkeypatch.setattr(flat, "FEW_NUMBERS", few)
        each = [flat.search(vectors, queries, k), flat.search(vectors, queries, k, live)]
        found.append([*each, flat.search_rows(vectors, queries, k, some)])
    for (scores, slots), (expected, others) in zip(*found, strict=True):
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        assert [sorted(vectors[row].tobytes() for row in rows) for rows in slots] == [
            sorted(vectors[row].tobytes() for row in rows) for rows in others
        ]
        ordered = [np.lexsort((row, -score)).tolist() for row, score in zip(slots, scores, strict=True)]
        assert ordered == [list(range(k))] * 3
