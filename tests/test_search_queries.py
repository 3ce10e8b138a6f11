"""What a query may be made of, held against numpy written out; and many queries at once."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import embedded, jsonl, records, vector
from hypothesis import given
from hypothesis import strategies as st

from vlmkit.errors import VlmkitError
from vlmkit.index import Index, Writer
from vlmkit.search.query import Query, query_vector, weighted_file, weighted_text
from vlmkit.search.search import SearchOptions, search


def unit(rows: object) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def made(folder: Path, vectors: np.ndarray, **fields: object) -> Path:
    """An index of these vectors, with ids 0, 1, …"""
    with Writer(folder) as writer:
        for i, row in enumerate(vectors):
            writer.add({"id": str(i), "model": "toy@0", "embedding": row, **fields})
    return folder


@pytest.fixture
def indexed(vlmkit, photos: Path, photo_rows: bytes, tmp_path: Path) -> Path:
    """The photographs, in the default index and in `photos.jsonl`."""
    (tmp_path / "photos.jsonl").write_bytes(photo_rows)
    vlmkit("index", "photos.jsonl")
    return photos


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("2:golden retriever", (2, "golden retriever")),
        (".5: fog", (0.5, "fog")),
        ("1.5:3d", (1, "1.5:3d")),
        ("1.5: 3d", (1.5, "3d")),
        ("10:30 on a clock", (1, "10:30 on a clock")),
        ("16:9 screen", (1, "16:9 screen")),
        ("1: 10: the film", (1, "10: the film")),
        ("note: a dog", (1, "note: a dog")),
        ("2:", (1, "2:")),
        ("-2:dog", (1, "-2:dog")),
    ],
)
def test_a_weight_is_a_number_and_a_colon(text: str, parts: tuple[float, str]) -> None:
    assert weighted_text(text) == parts


def test_a_file_with_a_weight_or_with_such_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert weighted_file("2:0001.jpg") == (2, "0001.jpg")
    Path("2:0001.jpg").touch()
    assert weighted_file("2:0001.jpg") == (1, "2:0001.jpg")


def test_parts_add_up_as_numpy_says(vlmkit, indexed: Path, tmp_path: Path) -> None:
    rows = {Path(r["id"]).name: vector(r) for r in records((tmp_path / "photos.jsonl").read_bytes())}
    texts = {r["id"]: vector(r) for r in records(vlmkit("embed", "--text", stdin=b"a cat\na rocket\nnight\n").stdout)}
    parts = [2 * texts["a cat"], texts["a rocket"], 0.5 * rows["coffee.png"], -1.5 * texts["night"], rows["coins.png"]]
    expected = {name: float(row @ unit(sum(parts))) for name, row in rows.items() if name != "coins.png"}
    asked = ["2:a cat", "a rocket", "--image", "0.5:photos/coffee.png", "--minus", "1.5:night"]
    (tmp_path / "photos").symlink_to(indexed)
    found = records(vlmkit("search", *asked, "--like", indexed / "coins.png", "-k", 99).stdout)
    assert {Path(r["id"]).name: r["score"] for r in found} == pytest.approx(expected, abs=4e-3)
    assert [r["rank"] for r in found] == list(range(1, len(expected) + 1))
    assert found[0]["query"] == f"2:a cat + a rocket + 0.5:photos/coffee.png + {indexed / 'coins.png'} - 1.5:night"


numbers = st.floats(-1, 1, width=16).map(float)


def rows_of(dim: int) -> st.SearchStrategy[list[list[float]]]:
    row = st.lists(numbers, min_size=dim, max_size=dim).filter(lambda v: bool(np.linalg.norm(v) > 0.1))
    return st.lists(row, min_size=3, max_size=20)


arrays = st.integers(2, 6).flatmap(rows_of)


@pytest.mark.slow
@given(arrays, st.integers(1, 25), st.floats(-1, 1))
def test_order_ranks_and_floor(tmp_path_factory: pytest.TempPathFactory, rows: list, k: int, floor: float) -> None:
    vectors = unit(rows)
    folder = made(tmp_path_factory.mktemp("order") / "i", vectors)
    stored = vectors.astype(np.float16).astype(np.float32)
    with Index(folder) as index:
        query = (
            query_vector(Query(like=["0", "1"]), index, None)
            if np.linalg.norm(stored[0] + stored[1]) > 0.1
            else stored[:1]
        )
        (found,) = search(index, query, [{}], SearchOptions(k, without=frozenset([1]), min_score=floor))
    cosines = {str(i): float(row @ query[0]) for i, row in enumerate(stored) if i != 1}
    expected = sorted(cosines.values(), reverse=True)[:k]
    assert [r["score"] for r in found] == pytest.approx([min(c, 1) for c in expected if c >= floor], abs=2e-6) or any(
        abs(c - floor) < 1e-5 for c in expected
    )
    assert [r["rank"] for r in found] == list(range(1, len(found) + 1))
    assert all(r["score"] == pytest.approx(min(cosines[r["id"]], 1), abs=2e-6) for r in found)


@given(arrays)
def test_like_adds_unit_vectors(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    vectors = unit(rows)
    folder = made(tmp_path_factory.mktemp("like") / "i", vectors)
    total = vectors.astype(np.float16).astype(np.float32)[:3].sum(0)
    with Index(folder) as index:
        asked = Query(like=["0", "1", "2"])
        if np.linalg.norm(total) < 0.01:
            with pytest.raises(VlmkitError, match="cancel"):
                query_vector(asked, index, None)
                raise VlmkitError("close to the limit, where either will do, cancel", "")
        else:
            assert query_vector(asked, index, None)[0] == pytest.approx(unit(total), abs=1e-3)


def test_like_needs_no_model_and_leaves_itself_out(vlmkit) -> None:
    rows = [{**embedded(n, v), "model": None} for n, v in (("a", [1, 0]), ("b", [0.9, 0.1]), ("c", [0, 1]))]
    vlmkit("index", stdin=jsonl(*({k: v for k, v in row.items() if v is not None} for row in rows)))
    assert [r["id"] for r in records(vlmkit("search", "--like", "a").stdout)] == ["b", "c"]
    assert [r["id"] for r in records(vlmkit("search", "--like", "a", "--like", "b").stdout)] == ["c"]
    assert [r["id"] for r in records(vlmkit("search", "--like", "a", "-k", 1).stdout)] == ["b"]
    message = vlmkit("search", "a cat", code=2).stderr
    assert message.count(b"\n") == 1 and b"does not say which model" in message
    assert b"--like d: no such record" in vlmkit("search", "--like", "d", code=2).stderr
    assert vlmkit("search", "--like", "a", "--relative", "--min-score", 99, code=1).stdout == b""


def test_usage(vlmkit, indexed: Path) -> None:
    assert b"cancel out" in vlmkit("search", "a cat", "--minus", "a cat", code=2).stderr
    assert b"cancel out" in vlmkit("search", "0:a cat", code=2).stderr
    vlmkit("search", "--minus", "a cat", "-k", 1)
    wrong = [["x", "--duplicates"], ["x", "--queries", "q"], ["--duplicates", "--min-score", 1], ["x", "--where", "y"]]
    wrong += [
        ["x", "--json", "-l"],
        ["x", "--preview"],
        ["x", "-o", "f", "--html", "f"],
        ["x", ""],
        ["--queries", "no"],
    ]
    wrong += [
        ["--queries", "no"],
        ["--queries", "q.jsonl", "-o", "q.jsonl"],
        ["--duplicates", "--threshold", 2],
        ["--image", "3:no"],
    ]
    for arguments in wrong:
        done = vlmkit("search", *arguments, code=2)
        assert done.stderr.count(b"\n") == 1 and done.stderr.startswith(b"vlmkit: "), arguments


def test_queries_are_those_asked_one_by_one(vlmkit, indexed: Path, tmp_path: Path) -> None:
    rows = records((tmp_path / "photos.jsonl").read_bytes())[:1]
    given_rows = [{"id": "t", "text": "a cat"}, {"image": str(indexed / "rocket.jpg")}, *rows]
    (tmp_path / "q.jsonl").write_bytes(jsonl(*given_rows))
    found = records(vlmkit("search", "--queries", "q.jsonl", "-k", 2, "--batch-size", 2).stdout)
    assert [r["query_id"] for r in found[::2]] == ["t", str(indexed / "rocket.jpg"), rows[0]["id"]]
    assert [r["rank"] for r in found] == [1, 2] * 3
    alone = records(vlmkit("search", "a cat", "-k", 2).stdout) + records(
        vlmkit("search", "--image", indexed / "rocket.jpg", "-k", 2).stdout
    )
    for one, other in zip(found, alone, strict=False):
        assert one["id"] == other["id"] and one["score"] == pytest.approx(other["score"], abs=1e-3)
    assert found[4]["id"] == rows[0]["id"] and found[4]["score"] == pytest.approx(1, abs=1e-3)
    assert {r["query"] for r in found} == {"a cat", str(indexed / "rocket.jpg"), rows[0]["id"]}


@pytest.mark.parametrize("how", ["lines", "records", "safetensors", "folder"])
def test_queries_come_as_every_input_does(vlmkit, indexed: Path, how: str) -> None:
    stdin = {
        "lines": b"a cat\na rocket\n",
        "records": jsonl({"text": "a cat"}, {"text": "a rocket"}),
        "safetensors": vlmkit("embed", "--text", "--format", "safetensors", stdin=b"a cat\na rocket\n").stdout,
        "folder": b"",
    }[how]
    done = vlmkit("search", "--queries", indexed if how == "folder" else "-", "-k", 1, "-l", stdin=stdin)
    names = [Path(line).name for line in done.stdout.decode().splitlines()]
    assert names == (sorted(p.name for p in indexed.iterdir()) if how == "folder" else ["chelsea.png", "rocket.jpg"])


def test_failed_queries(vlmkit, indexed: Path, tmp_path: Path) -> None:
    model = records((tmp_path / "photos.jsonl").read_bytes())[0]["model"]
    rows = [{"text": "a cat"}, {"id": "gone", "image": "/gone.png"}, {"id": "none"}, {"text": "a rocket"}]
    rows.append({"id": "short", "model": model, "embedding": [1, 0]})
    done = vlmkit("search", "--queries", "-", "-k", 1, "--errors", "e.jsonl", stdin=jsonl(*rows), code=3)
    assert [Path(r["id"]).name for r in records(done.stdout)] == ["chelsea.png", "rocket.jpg"]
    assert [r["id"] for r in records((tmp_path / "e.jsonl").read_bytes())] == ["gone", "none", "short"]
    vlmkit("search", "--queries", "-", stdin=jsonl(rows[1]), code=2)
    assert vlmkit("search", "--queries", "-", stdin=b"", code=0).stdout == b""


def test_words_that_the_model_does_not_know_are_named(vlmkit, photos: Path, indexed: Path) -> None:
    """Wherever a text goes to a model, in one line; punctuation is not a word."""
    told = {
        "σκύλος": vlmkit("search", "a cat and a σκύλος", "-k", 1),
        "東京": vlmkit("search", "a cat", "--minus", "東京", "-k", 1),
        "🚀": vlmkit("search", "--queries", "-", "-k", 1, stdin="a rocket\na 🚀\na 🚀\n".encode()),
        "кошка": vlmkit("classify", photos / "chelsea.png", "--labels", "cat,кошка"),
        "חתול": vlmkit("embed", "--text", stdin="a חתול\na cat\n".encode()),
    }
    for word, done in told.items():
        assert done.stderr.count(b"\n") == 1 and f" {word}:" in done.stderr.decode() and done.stdout
    for known in ("a cat", "“a café”… the cat’s — naïve 2", "qwfpgj"):
        assert not vlmkit("search", known, "-k", 1).stderr


@pytest.mark.parametrize("model", ["toy@0123456789ab", None])
def test_own_vectors_need_no_model(vlmkit, model: str | None) -> None:
    axes = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    rows = [embedded(str(i), axis, model) for i, axis in enumerate(axes)]
    vlmkit("index", "-i", "./own", stdin=jsonl(*rows))
    asked = [embedded("q", [0, 2, 1], model), embedded("r", [3, 0, 0], model)]
    if model is None:
        del asked[1]["model"]
    ask = ("search", "-i", "./own", "--queries", "-", "-k", 2)
    found = records(vlmkit(*ask, stdin=jsonl(*asked)).stdout)
    assert [(r["query_id"], r["id"]) for r in found][:3] == [("q", "1"), ("q", "2"), ("r", "0")]
    assert found[0]["score"] == pytest.approx(2 / 5**0.5, abs=1e-3)
    packed = vlmkit("index", "-i", "./own", "--dump", "--format", "safetensors").stdout
    assert [r["id"] for r in records(vlmkit(*ask[:-2], "-k", 1, stdin=packed).stdout)] == ["0", "1", "2"]
    assert vlmkit(*ask, "--relative", stdin=jsonl(*asked), code=0 if model is None else 2)
    assert b"by an unnamed model" in vlmkit("embed", stdin=jsonl({"id": "q", "embedding": [1, 0, 0]}), code=2).stderr
    for wrong in (embedded("q", [1, 0], model), embedded("q", [0, 0, 0], model)):
        vlmkit(*ask, stdin=jsonl(wrong), code=2)


RELATIVE = 3.3  # the threshold of the manual


def test_relative_tells_what_is_not_there(vlmkit, indexed: Path) -> None:
    """Of what is there a good part passes, of the rest hardly anything; tests/benchmarks/relative.py has the shares."""
    ask = ("search", "--relative", "--min-score", RELATIVE, "--queries", "-")
    assert {r["query"] for r in records(vlmkit(*ask, stdin=b"a cat\na motorcycle\n").stdout)} == {
        "a cat",
        "a motorcycle",
    }
    absent = b"a jellyfish\na penguin\na football player\na wedding cake\na bicycle\na computer keyboard\na lobster\n"
    assert vlmkit(*ask, stdin=absent, code=1).stdout == b""


def test_relative_is_the_standard_score_against_everyday_texts(vlmkit, indexed: Path, tmp_path: Path) -> None:
    from vlmkit.search.reference import reference_texts

    lines = "".join(text + "\n" for text in reference_texts()).encode()
    everyday = np.stack([vector(r) for r in records(vlmkit("embed", "--text", stdin=lines).stdout)])
    rows = {r["id"]: vector(r) for r in records((tmp_path / "photos.jsonl").read_bytes())}
    for _ in range(2):  # the second time from the cache
        for hit in records(vlmkit("search", "a cat", "--relative", "-k", 3).stdout):
            reference = everyday @ rows[hit["id"]]
            expected = (hit["score"] - reference.mean()) / reference.std()
            assert hit["relative"] == pytest.approx(float(expected), abs=0.05)
    cached = list((tmp_path / "home/XDG_CACHE_HOME/vlmkit").glob("reference-*.npy"))
    assert len(cached) == 1
    cached[0].write_bytes(b"torn")
    assert json.loads(vlmkit("search", "a cat", "--relative", "-k", 1).stdout)["relative"] > RELATIVE


def test_words_that_the_model_does_not_know_find_nothing(vlmkit, indexed: Path) -> None:
    done = vlmkit("search", "2:кот", "--minus", "🐻", code=1)
    assert done.stdout == b"" and "any word of 2:кот - 🐻".encode() in done.stderr and done.stderr.count(b"\n") == 1
    some = vlmkit("search", "a white кот", "-k", "1")
    assert len(records(some.stdout)) == 1 and "кот".encode() in some.stderr
    done = vlmkit("search", "--queries", "-", "-k", "1", code=3, stdin="a cat\nкот\n".encode())
    assert [row["query"] for row in records(done.stdout)] == ["a cat"] and done.stderr.count(b"\n") == 1
    assert b"left out" in vlmkit("embed", "--text", code=2, stdin="кот\n".encode()).stderr
    done = vlmkit("classify", indexed / "coffee.png", "--labels", "мяч,кот", code=2)
    assert b"does not know any word of the labels" in done.stderr


def test_texts_longer_than_the_context_are_counted(vlmkit, indexed: Path) -> None:
    long = b"a dog runs over the grass " * 12
    told = b"vlmkit: %s longer than the 64 tokens that the model reads: only %s embedded, shorten the rest\n"
    one, two = (b"1 text is", b"its beginning is"), (b"2 texts are", b"their beginnings are")
    assert vlmkit("embed", "--text", stdin=long + b"\na dog\n" + long + b"\n").stderr == told % two
    assert vlmkit("search", long.decode()).stderr == told % one
    assert vlmkit("classify", indexed / "coffee.png", "--labels", f"cup,{long.decode()}").stderr == told % one


def test_a_precision_is_not_for_a_model_of_a_service(vlmkit, indexed: Path) -> None:
    told = vlmkit("search", "a cat", "--via", "http://localhost:1", "--precision", "bf16", code=2).stderr
    assert told == b"vlmkit: --precision excludes --via: the service has a precision of its own\n"
