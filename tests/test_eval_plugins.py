"""Metrics of other packages in `vlmkit eval`, with a package as pip leaves it."""

import os
from pathlib import Path

import pytest
from helpers import jsonl, records
from predictions import answers, by_metric, write

pytestmark = pytest.mark.slow

PACKAGE = """
def brevity(prediction, references):
    return 1 / max(1, len(prediction.split()))


def percent(prediction, references):
    return 50


def broken(prediction, references):
    return references["first"]
"""
ENTRIES = """[vlmkit.metrics]
brevity = word_metrics:brevity
percent = word_metrics:percent
broken = word_metrics:broken
absent = word_metrics:absent
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, environment: dict[str, str]) -> None:
    """A package on the path that adds metrics."""
    folder = tmp_path / "site"
    (folder / "word_metrics-1.0.dist-info").mkdir(parents=True)
    (folder / "word_metrics.py").write_text(PACKAGE)
    (folder / "word_metrics-1.0.dist-info/METADATA").write_text("Name: word-metrics\nVersion: 1.0\n")
    (folder / "word_metrics-1.0.dist-info/entry_points.txt").write_text(ENTRIES)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), environment.get("PYTHONPATH")]))


def test_a_metric_by_its_name(vlmkit, tmp_path: Path) -> None:
    rows = answers("red", "a red car", "", "dark red")
    named = ("--metric", "brevity", "--metric", "exact", "--items", "items.jsonl")
    found = by_metric(vlmkit("eval", "vqa", *named, stdin=jsonl(*rows)).stdout)
    assert list(found) == ["brevity", "exact"] and found["brevity"]["n"] == 4
    assert found["brevity"]["value"] == pytest.approx((1 + 1 / 3 + 1 + 1 / 2) / 4)
    assert found["brevity"]["ci95"][0] < found["brevity"]["value"] < found["brevity"]["ci95"][1]
    assert found["brevity"]["signature"].startswith("brevity|from:word_metrics:brevity|n:4|refs:10|")
    items = records((tmp_path / "items.jsonl").read_bytes())
    assert [item["brevity"] for item in items] == pytest.approx([1, 1 / 3, 1, 1 / 2])
    assert "brevity" not in by_metric(vlmkit("eval", "vqa", stdin=jsonl(*rows)).stdout)


def test_compare_by_a_metric(vlmkit, tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", *answers(*["red"] * 12))
    b = write(tmp_path / "b.jsonl", *reversed(answers(*["a dark red car"] * 12)))
    found = by_metric(vlmkit("eval", "compare", a, b, "--metric", "brevity").stdout)["brevity"]
    assert (found["a"], found["b"], found["value"], found["better"]) == (1, 0.25, 0.75, "a")


def test_metrics_of_vlmkit_for_every_task(vlmkit) -> None:
    rows = [{"id": str(i), "caption": text, "captions": ["a red bus"]} for i, text in enumerate(["a red bus", "x"])]
    found = by_metric(vlmkit("eval", "caption", "--metric", "anls", "--tokenizer", "py", stdin=jsonl(*rows)).stdout)
    assert list(found) == ["anls"] and found["anls"]["value"] == 0.5


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("percent", "the metric percent gave 50 for q0: make it return a number from 0 to 1"),
        ("broken", "the metric broken failed for q0 (list indices must be integers or slices, not str): check"),
        ("absent", "the plugin absent of vlmkit.metrics cannot be loaded"),
        ("nothing", "no metric nothing of vqa here: use vqa_accuracy, "),
    ],
)
def test_refusals_name_the_metric(vlmkit, metric: str, reason: str) -> None:
    done = vlmkit("eval", "vqa", "--metric", metric, stdin=jsonl(*answers("red")), code=2)
    assert done.stderr.startswith(f"vlmkit: {reason}".encode()) and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("task", ["vqa", "anls", "chartqa", "pope", "classify", "choice", "caption", "retrieval"])
def test_every_task_takes_a_metric(vlmkit, task: str) -> None:
    rows = [{"id": str(i), "question": "?", "options": ["yes", "no"], "label": "yes"} for i in range(2)]
    rows = [row | {"answer": "yes", "answers": ["yes"], "caption": "yes", "captions": ["yes"]} for row in rows]
    if task == "retrieval":  # a picture's prediction is the caption that it finds first
        rows = [{"id": str(i), "captions": [text]} for i, text in enumerate(["one", "two words"])]
        for row, vector in zip(rows, ([1, 0], [0, 1]), strict=True):
            row |= {"embedding": vector, "caption_embeddings": [vector]}
    k = ["-k", "1"] if task == "retrieval" else []
    done = vlmkit("eval", task, *k, "--metric", "brevity", "--items", "items.jsonl", stdin=jsonl(*rows))
    assert by_metric(done.stdout)["brevity"]["value"] == (0.75 if task == "retrieval" else 1)
