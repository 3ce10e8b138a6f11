"""A real package with a plugin of each kind: installed, then used by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import embedded, jsonl, picture, records

pytestmark = pytest.mark.slow

PLUGIN = Path(__file__).with_name("plugin")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the plugin, as pip installs it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(PLUGIN)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(autouse=True)
def with_plugin(site: Path, environment: dict[str, str], tmp_path: Path) -> None:
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), environment.get("PYTHONPATH")]))
    for color in ("red", "green", "blue"):
        picture(tmp_path / f"{color}.png", color)


def test_an_embedder_embeds_indexes_searches_and_classifies(installed, shell, tmp_path: Path) -> None:
    made = records(installed("embed", "-m", "colors", "red.png", "green.png", "blue.png").stdout)
    assert {row["model"].partition("@")[0] for row in made} == {"colors"} and len(made) == 3
    installed("index", "-i", "./i", stdin=jsonl(*made))
    (hit,) = records(installed("search", "-i", "./i", "a green thing", "-k", "1").stdout)  # by text
    assert hit["id"].endswith("green.png") and hit["score"] > 0.99
    (hit,) = records(installed("search", "-i", "./i", "--image", "blue.png", "-k", "1").stdout)
    assert hit["id"].endswith("blue.png")
    rows = records(installed("classify", "-m", "colors", "red.png", "--labels", "red,blue", "--template", "{}").stdout)
    assert rows[0]["label"] == "red"


def test_a_type_of_index_is_built_and_searched(installed, tmp_path: Path) -> None:
    vectors = {"a": [1, 0], "b": [0, 1], "c": [0.6, 0.8]}
    installed("index", "-i", "./i", "--type", "small_graph", stdin=jsonl(*(embedded(k, v) for k, v in vectors.items())))
    (info,) = records(installed("index", "-i", "./i", "--info").stdout)
    assert info["type"] == "small_graph" and "recall@10 was 1.000" in info["reason"]
    installed("index", "-i", "./i", "--verify")
    assert [row["id"] for row in records(installed("search", "-i", "./i", "--like", "a").stdout)] == ["c", "b"]
    message = installed("index", "-i", "./i", "--type", "no_graph", code=2).stderr
    assert b"ivfpq" in message and b"small_graph" in message


def test_a_vector_store_takes_an_index_and_is_searched(installed, tmp_path: Path) -> None:
    vectors = {"a": [1, 0], "b": [0, 1], "c": [0.6, 0.8]}
    installed("index", "-i", "./i", stdin=jsonl(*(embedded(k, v, n=len(v)) for k, v in vectors.items())))
    told = installed("index", "-i", "./i", "--to", "pickled:store").stderr
    assert told == b"vlmkit: 3 records added, 0 replaced, 0 there already: pickled:store holds 3\n"
    for words in (["--like", "a"], ["--like", "b", "--where", "id=c"]):
        found = [records(installed("search", "-i", name, *words).stdout) for name in ("./i", "pickled:store")]
        assert [row["id"] for row in found[0]] == [row["id"] for row in found[1]] and found[0]
    assert b"begin it with qdrant: or pickled:" in installed("index", "-i", "./i", "--to", "x:y", code=2).stderr


def test_a_chat_model_captions_and_answers(installed, tmp_path: Path) -> None:
    assert installed("ask", "-m", "painter", "red.png", "which colour?").stdout == b"red\n"
    assert installed("ask", "-m", "painter", "red.png", "blue.png", "which?").stdout == b"red and blue\n"
    (row,) = records(installed("caption", "-m", "painter", "green.png", "--json").stdout)
    assert row["caption"] == "Green." and row["caption_model"].startswith("painter@")


def test_a_connector_is_trained_and_opened(installed, tmp_path: Path) -> None:
    rows = [{"image": f"{color}.png", "captions": [f"a {color} square"]} for color in ("red", "green", "blue")]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(*rows))
    installed(
        "train", "align", "rows.jsonl", "--preset", "debug", "--steps", "1", "--connector", "average", "-o", "one"
    )
    card = (tmp_path / "one/README.md").read_text()
    assert "| connector | average |" in card and "| image tokens | 1 |" in card and "Not native" in card
    installed("ask", "-m", "one", "red.png", "which?", "--max-tokens", "2")


def test_a_data_set_is_listed_and_converted(installed, tmp_path: Path) -> None:
    names = [json.loads(line)["name"] for line in installed("download", "--list").stdout.splitlines()]
    assert "flags" in names and "daquar" in names
    (card,) = records(installed("download", "--card", "flags").stdout)
    assert card["licence"] == "CC0"
    rows = records(installed("download", "flags", "--dir", "data").stdout)
    assert [row["id"] for row in rows] == ["Austria", "France"]


def test_a_metric_scores_and_compares(installed, tmp_path: Path) -> None:
    rows = [{"id": str(n), "question": "?", "answers": ["a red car"]} for n in range(4)]
    for name, answer in (("a", "a red car"), ("b", "a car")):
        (tmp_path / name).write_bytes(jsonl(*(row | {"answer": answer} for row in rows)))
    (score,) = records(installed("eval", "vqa", "b", "--metric", "same_words").stdout)
    assert score["metric"] == "same_words" and score["value"] == pytest.approx(2 / 3, abs=1e-6) and score["n"] == 4
    (difference,) = records(installed("eval", "compare", "a", "b", "--metric", "same_words").stdout)
    assert difference["value"] == pytest.approx(1 / 3, abs=1e-6)


def test_a_reader_opens_what_its_suffix_stands_for(installed, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/paints.swatch").write_text("sky #87ceeb\nred #ff0000\n")
    made = records(installed("embed", "-m", "colors", "folder").stdout)
    assert [row["image"].rpartition("/")[2] for row in made] == ["paints.swatch#sky", "paints.swatch#red"]
    assert installed("ask", "-m", "painter", "folder/paints.swatch#red", "which?").stdout == b"red\n"
    rows = records(installed("caption", "-m", "painter", stdin=jsonl({"image": "folder/paints.swatch#red"})).stdout)
    assert rows[0]["caption"] == "Red."
    (tmp_path / "folder/paints.swatch").write_text("sky #87ceeb\nred nothing\n")
    done = installed("embed", "-m", "colors", "folder", code=3)
    assert len(records(done.stdout)) == 1 and b"paints.swatch" in done.stderr


def test_a_decoder_opens_pictures_of_its_kind(installed, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/paint.chip").write_text("CHIP 640 480 #ff0000")
    (tmp_path / "in/bad.chip").write_text("CHIP")
    done = installed("embed", "-m", "colors", "in", code=3)
    (row,) = records(done.stdout)
    assert (row["width"], row["height"]) == (640, 480) and b"bad.chip" in done.stderr
    assert installed("ask", "-m", "painter", "in/paint.chip", "which?").stdout == b"red\n"


def test_one_that_does_not_load_is_named(installed, site: Path, environment: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "entry_points.txt").write_text("[vlmkit.embedders]\nbroken = no_such_module:Thing\n")
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    done = installed("embed", "-m", "broken", "red.png", code=2)
    assert b"the plugin broken of vlmkit.embedders cannot be loaded" in done.stderr and done.stderr.count(b"\n") == 1
