"""search and classify through the installed command, on real photographs and with the model that ships."""

import json
import os
import pty
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import embedded, jsonl, records, vector


@pytest.fixture
def indexed(vlmkit, photos: Path, photo_rows: bytes) -> Path:
    """The photographs, in the default index."""
    vlmkit("index", stdin=photo_rows)
    return photos


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("a cup of coffee", "coffee.png"),
        ("a cat", "chelsea.png"),
        ("a rocket taking off", "rocket.jpg"),
        ("a motorcycle in a garage", "motorcycle_left.png"),
        ("a flower", "flower.jpg"),
        ("a horse", "horse.png"),
    ],
)
def test_finds_the_right_photo(vlmkit, indexed: Path, query: str, name: str) -> None:
    found = vlmkit("search", query, "-k", 3, "-l").stdout.decode().splitlines()
    assert str(indexed / name) in found


def test_result_records(vlmkit, indexed: Path) -> None:
    found = records(vlmkit("search", "a cat", "-k", 5).stdout)
    assert [r["rank"] for r in found] == [1, 2, 3, 4, 5]
    assert {r["query"] for r in found} == {"a cat"}
    assert [r["score"] for r in found] == sorted((r["score"] for r in found), reverse=True)
    assert all(-1 <= r["score"] <= 1 and "embedding" not in r and r["width"] for r in found)


@pytest.mark.slow
def test_score_is_the_cosine(vlmkit, photos: Path) -> None:
    rows = records(vlmkit("embed", photos).stdout)
    vlmkit("index", stdin=jsonl(*rows))
    (text,) = records(vlmkit("embed", "--text", stdin=b"a cat\n").stdout)
    cosines = {r["id"]: float(vector(r) @ vector(text)) for r in rows}
    found = records(vlmkit("search", "a cat", "-k", 100).stdout)
    assert {r["id"]: r["score"] for r in found} == pytest.approx(cosines, abs=2e-3)


def test_search_by_picture(vlmkit, indexed: Path) -> None:
    found = records(vlmkit("search", "--image", indexed / "chelsea.png", "-k", 2).stdout)
    assert found[0]["image"] == str(indexed / "chelsea.png")
    assert found[0]["score"] == pytest.approx(1, abs=1e-3)


def test_text_and_picture_add_up(vlmkit, indexed: Path) -> None:
    both = records(vlmkit("search", "a rocket", "--image", indexed / "chelsea.png", "-k", 4).stdout)
    names = [Path(r["image"]).name for r in both]
    assert "chelsea.png" in names and "rocket.jpg" in names


def test_paths_line_by_line_and_nul(vlmkit, indexed: Path) -> None:
    lines = vlmkit("search", "a cat", "-k", 2, "-l").stdout
    assert lines.count(b"\n") == 2
    assert vlmkit("search", "a cat", "-k", 2, "-0").stdout == lines.replace(b"\n", b"\0")


def test_usage_and_missing_things(vlmkit, tmp_path: Path, photos: Path) -> None:
    assert b"vlmkit embed" in vlmkit("search", "a cat", code=2).stderr
    vlmkit("search", code=2)
    vlmkit("search", "a cat", "-k", 0, code=2)
    vlmkit("index", stdin=vlmkit("embed", photos / "coffee.png").stdout)
    vlmkit("search", "--image", "missing.png", code=2)
    (tmp_path / "bad.png").write_bytes(b"bad")
    vlmkit("search", "--image", "bad.png", code=2)


def test_index_of_an_unknown_or_changed_model(vlmkit) -> None:
    vlmkit("index", stdin=jsonl(embedded("a", [1, 0])))
    assert b"toy" in vlmkit("search", "a cat", code=2).stderr
    vlmkit("index", "-i", "./i", stdin=jsonl(embedded("a", [1, 0], "mini@000000000000")))
    done = vlmkit("search", "-i", "./i", "a cat", code=2)
    assert b"mini@000000000000" in done.stderr and done.stderr.count(b"mini@") == 2


def test_results_go_on_to_embed(vlmkit, indexed: Path) -> None:
    """Hits are records: they keep their fields when piped on."""
    hits = vlmkit("search", "a cat", "-k", 2).stdout
    again = records(vlmkit("embed", stdin=hits).stdout)
    assert [r["rank"] for r in again] == [1, 2] and all(r["query"] == "a cat" for r in again)


@pytest.mark.slow
def test_table_on_a_terminal(indexed: Path, tmp_path: Path, environment) -> None:
    master, slave = pty.openpty()
    command = ["vlmkit", "search", "a cat", "-k", "2"]
    done = subprocess.run(
        command, stdout=slave, stderr=subprocess.PIPE, cwd=tmp_path, env=environment | {"COLUMNS": "200"}
    )
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert done.returncode == 0 and done.stderr == b""
    assert "rank" in shown and "chelsea.png" in shown and "{" not in shown


@pytest.mark.parametrize(
    ("name", "label"),
    [("chelsea.png", "cat"), ("motorcycle_left.png", "motorcycle"), ("rocket.jpg", "rocket"), ("horse.png", "horse")],
)
def test_classify(vlmkit, photos: Path, name: str, label: str) -> None:
    (record,) = records(vlmkit("classify", photos / name, "--labels", "cat,espresso,rocket,horse,motorcycle").stdout)
    assert record["label"] == record["labels"][0]["label"] == label
    scores = [entry["score"] for entry in record["labels"]]
    assert sum(scores) == pytest.approx(1, abs=1e-4) and scores == sorted(scores, reverse=True) and len(scores) == 5
    assert "embedding" not in record and "model" not in record


def test_probabilities_follow_from_the_embeddings(vlmkit, photos: Path) -> None:
    """Held against the definition: softmax of logit scale times cosine, the labels in the template."""
    from vlmkit.models.load import load_embedder

    labels = ["cat", "dog", "coffee"]
    (picture,) = records(vlmkit("embed", photos / "chelsea.png").stdout)
    lines = "".join(f"a photo of a {label}.\n" for label in labels).encode()
    texts = np.stack([vector(r) for r in records(vlmkit("embed", "--text", stdin=lines).stdout)])
    logits = load_embedder("mini").logit_scale * (texts @ vector(picture))
    expected = np.exp(logits) / np.exp(logits).sum()
    (found,) = records(vlmkit("classify", photos / "chelsea.png", "--labels", ",".join(labels)).stdout)
    got = {entry["label"]: entry["score"] for entry in found["labels"]}
    assert got == pytest.approx(dict(zip(labels, expected, strict=True)), abs=0.02)


def test_classify_options(vlmkit, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\n\ndog\ncat\n")
    command = ("classify", photos / "chelsea.png", "--labels-file", "labels.txt")
    (record,) = records(vlmkit(*command, "-k", 1, "--template", "a {}", "--template", "a picture of a {}").stdout)
    assert [entry["label"] for entry in record["labels"]] == ["cat"]
    for wrong in ([], ["--labels", ","], ["--labels", "a", "--labels-file", "labels.txt"], ["--labels-file", "none"]):
        vlmkit("classify", photos / "chelsea.png", *wrong, code=2)
    vlmkit(*command, "--template", "no braces", code=2)


def test_classify_keeps_the_own_label_of_a_data_set(vlmkit, photo_rows: bytes) -> None:
    row, other = records(photo_rows)[:2]
    rows = jsonl(row | {"label": "truth"}, other)
    once = vlmkit("classify", "--labels", "cat,dog", stdin=rows).stdout
    again = vlmkit("classify", "--labels", "fish,bird", stdin=once).stdout
    for output, labels in ((once, {"cat", "dog"}), (again, {"fish", "bird"})):
        own, free = records(output)
        assert own["label"] == "truth" and own["predicted"] == own["labels"][0]["label"]
        assert free["label"] == free["labels"][0]["label"] and "predicted" not in free
        assert {entry["label"] for entry in own["labels"]} == labels


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jsonl", "safetensors"])
def test_each_command_reads_what_the_others_write(vlmkit, photos: Path, tmp_path: Path, form: str) -> None:
    """embed, index --dump, search and classify, one into the other."""
    vlmkit("embed", photos / "chelsea.png", photos / "coffee.png", "-o", f"v.{form}", "--format", form)
    vlmkit("index", f"v.{form}")
    outputs = {
        "embed": (tmp_path / f"v.{form}").read_bytes(),
        "dump": vlmkit("index", "--dump", "--format", form).stdout,
        "search": vlmkit("search", "a cat", "--json").stdout,
    }
    outputs |= {
        f"classify of {name}": vlmkit("classify", "--labels", "cat,cup", stdin=outputs[name]).stdout for name in outputs
    }
    for name, output in outputs.items():
        classify, search = ("classify", "--labels", "cat,cup"), ("search", "--queries", "-", "-k", "1")
        for command in (("embed", "--format", form), classify, search):
            done = vlmkit(*command, stdin=output)
            assert not done.stderr and done.stdout, (name, command)
        vlmkit("index", "-i", f"./of {name}", stdin=vlmkit("embed", "--format", form, stdin=output).stdout)
        assert vlmkit("index", "-i", f"./of {name}", "--verify").stderr == b""


def test_classify_uses_embeddings_that_are_there(vlmkit, photos: Path, tmp_path: Path) -> None:
    rows = records(vlmkit("embed", photos / "chelsea.png").stdout)
    gone = jsonl(*({**r, "image": "/gone.png"} for r in rows))
    (found,) = records(vlmkit("classify", "--labels", "cat,dog", stdin=gone).stdout)
    (direct,) = records(vlmkit("classify", photos / "chelsea.png", "--labels", "cat,dog").stdout)
    assert found["label"] == "cat" and found["embedding"] == rows[0]["embedding"]
    assert found["labels"][0]["score"] == pytest.approx(direct["labels"][0]["score"], abs=0.01)
    vlmkit("classify", "--labels", "cat,dog", stdin=json.dumps({"image": "/gone.png"}).encode(), code=2)


def test_a_picture_in_place_of_words_is_refused(vlmkit, indexed: Path) -> None:
    """The letters of its name would be the query."""
    done = vlmkit("search", indexed / "chelsea.png", code=2)
    assert done.stdout == b"" and b"look for what is like it with --image" in done.stderr


def test_a_missing_index_is_made_or_another_is_meant(vlmkit, photo_rows: bytes) -> None:
    assert vlmkit("search", "a cat", code=2).stderr.endswith(b"make one: vlmkit embed PHOTOS | vlmkit index\n")
    vlmkit("index", "-i", "holidays", stdin=photo_rows)
    assert vlmkit("search", "a cat", "-i", "holiday", code=2).stderr.endswith(b"did you mean -i holidays?\n")
    assert b"vlmkit index -i './my photos'" in vlmkit("search", "a cat", "-i", "./my photos", code=2).stderr
